"""Where the page is to be found, and for whom. Imports none of the packages that serve it."""

from __future__ import annotations

import ipaddress
import secrets
import socket

from sfrl.envs.names import is_installed

_PACKAGES = ("starlette", "uvicorn")


def check_installed(who: str) -> None:
    """Raises ValueError, which says that `who` needs them, if packages that serve are missing."""
    missing = [name for name in _PACKAGES if not is_installed(name)]
    if missing:
        raise ValueError(f'{who} needs {" and ".join(missing)}: pip install "sfrl[web]"')


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for browsers; port 0: one that is free.

    Raises:
        OSError: the port is taken, or the machine has no such address.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def token_for(listening: socket.socket) -> str:
    """What a browser must know to see anything: "" if only this machine can reach the socket."""
    address = ipaddress.ip_address(listening.getsockname()[0])
    return "" if address.is_loopback else secrets.token_urlsafe(16)


def url_of(listening: socket.socket, host: str, token: str) -> str:
    port = listening.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
