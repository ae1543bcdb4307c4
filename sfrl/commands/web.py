"""`sfrl web`: runs in the browser."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sfrl.commands.answers import answer, only_name
from sfrl.records import run_folder
from sfrl.records.run_folder import RunFolderError
from sfrl.settings.fields import between, settings_of
from sfrl.web import listening


@dataclass(frozen=True, kw_only=True)
class Args:
    """The page."""

    runs: tuple[str, ...] = ()
    port: Annotated[int, between(0, 65535)] = 8501
    """Of the page's address; 0 takes one that is free."""
    host: str = "127.0.0.1"
    """The address to listen on. The default is for browsers on this machine; with another one,
    such as 0.0.0.0, the URL has a token, and only who has it sees anything."""


def main(argv: Sequence[str], prog: str) -> int:
    text = (
        "A page in the browser that shows the runs in a folder and below it, live or finished; "
        "runs/ unless another is named. It goes on until Ctrl-C."
    )
    return answer(argv, prog, Args(), text, _web, "[FOLDER]")


def _web(args: Args) -> int:
    listening.check_installed("it")
    if problem := settings_of(Args)["port"].problem(args.port):
        raise ValueError(problem)
    name = only_name(args.runs)
    root = Path(run_folder.expanded("folder", name)) if name else run_folder.RUNS
    if not root.is_dir():
        raise RunFolderError(f"{root} is no folder; name one that holds runs")
    try:
        sock = listening.listen(args.host, args.port)
    except OSError as error:
        raise OSError(
            f"host={args.host} port={args.port} cannot be listened on: {error.strerror}; name "
            f"another --port (0 takes a free one), or an address of this machine with --host"
        ) from error
    with sock:
        from sfrl.web import server  # and starlette

        token = listening.token_for(sock)
        print(f"{root}/ is shown at {listening.url_of(sock, args.host, token)}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):  # it is how one ends it
            server.serve(root.absolute(), sock, args.host, token)
    return 0
