"""The page and its answers over HTTP."""

from __future__ import annotations

import json
import re
import secrets
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfrl.records.metrics import rounded
from sfrl.records.run_folder import RunFolderError
from sfrl.web import answers
from sfrl.web.watching import Watching

_HEADERS = {
    # No script, style or picture of anybody else's, and nothing that a run's texts could inject.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_STATIC = Path(__file__).parent / "static"


def serve(root: Path, listening: socket.socket, host: str, token: str) -> None:
    """Until Ctrl-C or SIGTERM. `host` is what `listening` was made with."""
    watching = Watching()
    names = (host, listening.getsockname()[0])
    config = uvicorn.Config(
        application(root, names, token, watching),
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=1 << 20,  # a GET names each run whose curve is shown
    )
    _Server(config, watching).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, watching: Watching) -> None:
        super().__init__(config)
        self._watching = watching

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watching.end()  # their answers have no end of their own, and it waits for all
        await super().shutdown(sockets)


def application(root: Path, names: Sequence[str], token: str, watching: Watching) -> Starlette:
    """The page for the runs in `root`, an absolute path. See `_Guard` and `listening.token_for`."""

    def runs(_: Request) -> Response:
        return _json(answers.list_of_runs(root))

    def run(request: Request) -> Response:
        return _json(answers.one_run(root, request.query_params.get("run", "")))

    def curves(request: Request) -> Response:
        return _json(answers.several_runs(root, request.query_params.getlist("run")))

    def ask(request: Request) -> Response:
        given = request.query_params
        return _json(answers.ask(root, given.get("run", ""), given.get("what", "")))

    def play(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            # It would start a process, though it could not read the answer.
            return PlainTextResponse("a page of somebody else's has called it", 403)
        run_dir = answers.found(root, request.query_params.get("run", ""))
        return _Stream(watching.watch(run_dir), media_type="text/event-stream")

    def no_run(_: Request, error: Exception) -> Response:
        return _json({"error": str(error)}, 404)

    return Starlette(
        routes=[
            Route("/api/runs", runs),
            Route("/api/run", run),
            Route("/api/curves", curves),
            Route("/api/ask", ask, methods=["POST"]),
            Route("/api/play", play),
            Mount("/", StaticFiles(directory=_STATIC, html=True)),
        ],
        middleware=[Middleware(_Guard, names=names, token=token)],
        exception_handlers={RunFolderError: no_run, OSError: no_run},  # OSError: it has just gone
    )


class _Stream(StreamingResponse):
    """It closes what it streams, wherever it was when its browser left."""

    def __init__(self, content: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._content):
            await super().__call__(scope, receive, send)


def _json(value: object, status: int = 200) -> Response:
    """In ASCII: names of folders and settings may have characters that are no text."""
    text = json.dumps(rounded(value), allow_nan=False)
    return Response(text, status, media_type="application/json")


class _Guard:
    """Lets in who may see the runs, and adds `_HEADERS` to each answer.

    Without a token the browser must have called this machine by a local name, or by one of `names`,
    which it listens by: else a page of somebody else's, whose name suddenly means 127.0.0.1, could
    read the answers. With one, the first call has it in the URL; a cookie has it from then on.

    What is more than a look must come from this server's own page: any page that the browser shows
    could send it, and the browser would add the cookie.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], token: str) -> None:
        self._app, self._token = app, token
        own = (f"[{name}]" if ":" in name else name.lower() for name in names)
        self._names = tuple(dict.fromkeys((*_LOCAL_NAMES, *own)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """None: come in."""
        host = request.headers.get("host", "").lower()
        origin = request.headers.get("origin", "").lower()
        if request.method not in ("GET", "HEAD") and origin != f"http://{host}":
            return PlainTextResponse("only the page of this very server may ask for that", 403)
        if not self._token:
            if re.sub(r":\d*$", "", host) in self._names:
                return None
            return PlainTextResponse(f"call it by {' or '.join(self._names)}", 403)
        # Cookies of one machine's servers share their names; the port tells them apart.
        cookie = f"sfrl-{request.url.port}"
        if self._knows(request.query_params.get("token", "")):
            answer = RedirectResponse(request.url.path, 303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="lax")
            return answer
        if self._knows(request.cookies.get(cookie, "")):
            return None
        return PlainTextResponse("open the URL that sfrl web has printed: it has the token", 403)

    def _knows(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self._token.encode())
