"""A process of its own for what may hang, crash, print or call exit, such as an environment."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, connection
from typing import Any, BinaryIO, NoReturn

from setproctitle import setproctitle

from sfrl.ipc.shared_memory import Stopped
from sfrl.run.leaving import leave
from sfrl.run.signals import STOP_SIGNALS, leave_stopping_to_the_trainer
from sfrl.run.spawning import ROOT, descendants, terminate
from sfrl.run.watchdog import LONGEST_LOOK_S

_POLL_S = 0.05
_MAX_LINE = 500  # bytes of what a process that died has printed last
_END_S = 2.0  # for the process to end, once it has told

# Not multiprocessing's spawn, which sets a process up for much that this one does without.
_COMMAND = (
    "import json, sys; sys.path[:0], path, *given = json.loads(sys.argv[1]); "
    "import sfrl; sys.path[:] = path; "  # this very one; the environment's path is then the user's
    "from sfrl.run.apart import begin; begin(*given)"
)


class EndedError(RuntimeError):
    """The process ended, and has told nothing more; the text says how, and what it printed last."""


class Apart:
    """The process, as its parent sees it. `apart` makes it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        receiver: connection.Connection,
        printed: BinaryIO,
    ) -> None:
        self.process = process
        self._receiver = receiver
        self._printed = printed

    def receive(self, limit_s: float, signals: Sequence[int] = ()) -> Any:
        """The next that it tells.

        Args:
            limit_s: time in which this process was stopped itself does not count.
            signals: it is given up once there is one in it.

        Raises:
            EndedError: it has ended instead.
            TimeoutError: it has told nothing in time.
            Stopped: there is a signal.
        """
        waited_s, last_look_s = 0.0, time.monotonic()
        while waited_s < limit_s:
            connection.wait([self._receiver], _POLL_S)
            if signals:
                raise Stopped
            has_ended = self.process.poll() is not None  # asked first: it may have told and ended
            if self._receiver.poll():
                try:
                    return self._receiver.recv()
                except EOFError:
                    self.wait(_END_S)
                    has_ended = True
            if has_ended:
                raise EndedError(f"{self._end()}{self._last_line()}")
            now = time.monotonic()
            waited_s += min(now - last_look_s, LONGEST_LOOK_S)
            last_look_s = now
        raise TimeoutError

    def wait(self, limit_s: float = _END_S) -> None:
        """Until it has ended: a license or a port that it holds is free then."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(limit_s)

    @property
    def printed_bytes(self) -> int:
        return self._printed.seek(0, os.SEEK_END)

    def _last_line(self) -> str:
        """Often the reason."""
        self._printed.seek(max(0, self.printed_bytes - _MAX_LINE))
        lines = self._printed.read().decode("utf-8", "backslashreplace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"; the last that it printed: {last}" if last else ""

    def _end(self) -> str:
        code: int | None = self.process.returncode
        if code is None:
            return "has closed all files"
        known = {number.value: number.name for number in signal.Signals}
        return f"exited with {code}" if code >= 0 else f"was killed by {known.get(-code, -code)}"


@contextmanager
def apart(
    target: str, title: str, purpose: str, *given: object, inherited: Sequence[int] = ()
) -> Iterator[Apart]:
    """A process that calls `target`; ended, with all that it has started, when the block is left.

    Args:
        target: "module:function", called with a connection to send to, the number of this process
            and `given`, which JSON can hold.
        title: what `ps` shows of it, after "sfrl".
        purpose: what it does, for the error.
        inherited: descriptors that it has as well, by the same numbers.

    Raises:
        MemoryError: the process could not be started.
    """
    receiver, sender = Pipe(duplex=False)
    # What it prints goes into a file, which never waits for a reader.
    with receiver, os.fdopen(os.memfd_create("printed"), "w+b") as printed:
        with sender:  # the child's alone: its end is then the end of the pipe
            told = json.dumps(
                [[ROOT], sys.path, target, title, sender.fileno(), os.getpid(), *given]
            )
            process = _start(told, [sender.fileno(), *inherited], printed, purpose)
        side = Apart(process, receiver, printed)
        try:
            yield side
        finally:
            orphans = descendants(process.pid) if process.poll() is None else []
            process.kill()
            side.wait()  # not for ever: the kernel may hold it, and ends it later
            terminate(orphans)


def _start(
    told: str, inherited: Sequence[int], printed: BinaryIO, purpose: str
) -> subprocess.Popen[bytes]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until it can be told of them
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, told],  # -P: without the user's json.py
            pass_fds=inherited,
            close_fds=True,
            stdout=printed,
            stderr=printed,
        )
    except OSError as error:
        raise MemoryError(
            f"the process that {purpose} could not be started: {error}; the machine may be "
            f"out of memory or at its limit of processes (ulimit -u)"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# --- in the child ---


def begin(target: str, title: str, descriptor: int, parent: int, *given: Any) -> NoReturn:
    """Call the function, and end this process with all that it has left behind."""
    setproctitle(f"sfrl {title}")
    leave_stopping_to_the_trainer()
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    function(connection.Connection(descriptor, readable=False), parent, *given)
    terminate(descendants(os.getpid()))
    leave(0)


def give_way() -> None:
    """Run when nobody else wants the core, as all that is started from here."""
    os.nice(19)
    with suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
