"""Who watches which run: it is played by one process, as long as anybody does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from pathlib import Path

from sfrl.ipc.shared_memory import Stopped
from sfrl.run.apart import EndedError, apart

_MOST = 4  # runs at once: each takes some 300 MB
_LIMIT_S = 600.0  # for what the process tells next: others may leave it little time to start
_GRACE_S = 2.0  # in which who has left may come back, as one does who loads the page anew


class Watching:
    """All runs that are watched. It belongs to one event loop."""

    def __init__(self) -> None:
        self._shows: dict[Path, _Show] = {}

    async def watch(self, run_dir: Path) -> AsyncGenerator[bytes]:
        """What the run's agent does now, as server-sent events: see playing.py.

        Who takes them slowly gets fewer. They end when a problem was told, and with `end`.
        """
        show = self._shows.get(run_dir)
        if show is None or show.is_over:
            if sum(not other.is_over for other in self._shows.values()) == _MOST:
                yield _event(_problem(f"{_MOST} runs are watched already, which is the most."))
                return
            show = self._shows[run_dir] = _Show(run_dir)
        show.watchers += 1
        try:
            async for event in show.events():
                yield event
        finally:
            show.watchers -= 1
            asyncio.get_running_loop().call_later(_GRACE_S, show.end_if_left)

    def end(self) -> None:
        for show in self._shows.values():
            show.end()


class _Show:
    """A run that is played, by a process that lives in a thread of this one."""

    def __init__(self, run_dir: Path) -> None:
        self.watchers = 0
        self.is_over = False
        self._run_dir = run_dir
        self._latest: bytes | None = None
        self._loop = asyncio.get_running_loop()
        self._news = self._loop.create_future()  # done when there is another `_latest`
        self._signals: list[int] = []  # not empty: the process is to end
        threading.Thread(target=self._play, name="watch").start()

    async def events(self) -> AsyncGenerator[bytes]:
        given = None
        while True:
            if self._latest is not given:
                given = self._latest
                assert given is not None
                yield given
            elif self.is_over:
                return
            else:
                # Unlike `await`, it leaves the future to the others when one of them is cancelled.
                await asyncio.wait([self._news])

    def end_if_left(self) -> None:
        if self.watchers == 0:
            self.end()

    def end(self) -> None:
        self._signals.append(0)
        self._tell(self._latest, is_last=True)

    def _tell(self, event: bytes | None, *, is_last: bool) -> None:
        self._latest = event
        self.is_over |= is_last
        news, self._news = self._news, self._loop.create_future()
        news.set_result(None)

    # --- in the thread ---

    def _play(self) -> None:
        try:
            with apart("sfrl.web.playing:play", "play", "plays", str(self._run_dir)) as child:
                while True:
                    told = child.receive(_LIMIT_S, self._signals)
                    self._send(told)
        except Stopped:
            return
        except EndedError as error:
            problem = f"The process that plays {error}"
        except TimeoutError:
            problem = (
                f"The process that plays has told nothing for {_LIMIT_S:g} s: the environment "
                f"hangs, or others leave it no time."
            )
        except (MemoryError, OSError) as error:  # no process, or no file left
            problem = str(error)
        self._send(_problem(problem), is_last=True)

    def _send(self, told: str, *, is_last: bool = False) -> None:
        tell = partial(self._tell, _event(told), is_last=is_last)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(tell)


def _problem(text: str) -> str:
    return json.dumps({"problem": text})


def _event(told: str) -> bytes:
    return f"data: {told}\n\n".encode()
