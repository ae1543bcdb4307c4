"""Measurements in processes of their own, several at the same time, within a time limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple, NoReturn, ParamSpec, TypeVar

from sfrl.ipc.shared_memory import ShortageError, sweep_stale_segments
from sfrl.run.child import die_with_parent
from sfrl.run.leaving import leave_after
from sfrl.run.signals import leave_stopping_to_the_trainer
from sfrl.run.spawning import descendants, kill, spawn, terminate, wait_for_end

_END_S = 2.0  # for a process that has closed its pipe
SPAWN = multiprocessing.get_context("spawn")
P = ParamSpec("P")
R = TypeVar("R")


class MeasureError(RuntimeError):
    """A measuring process failed; its traceback is on stderr, unless the message says it all."""


class _Limit(NamedTuple):
    seconds: float
    end_s: float  # by the monotonic clock


_limit: ContextVar[_Limit | None] = ContextVar("_limit", default=None)


def in_child(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`function(...)` in a fresh process, which ends with it, and with it its shared memory.

    All that crosses is pickled.

    Raises:
        MeasureError: it failed.
    """
    [result] = in_children([partial(function, *args, **kwargs)])
    return result


def in_children(bodies: Sequence[Callable[[], R]]) -> list[R]:
    """The results of all bodies, each in a fresh process, at the same time."""
    results: dict[connection.Connection, R] = {}
    children: dict[connection.Connection, SpawnProcess] = {}
    try:
        for body in bodies:
            receiver, sender = SPAWN.Pipe(duplex=False)
            # Also where it measures networks: the learner's threads are not torch's.
            with interrupts_deferred():
                children[receiver] = spawn(_run_body, body, sender, one_thread=True)
            sender.close()  # the child's alone: its end is then the end of the pipe
        while len(results) < len(children):
            limit = _limit.get()
            left_s = limit and max(0.0, limit.end_s - time.monotonic())
            told = connection.wait([c for c in children if c not in results], left_s)
            if limit and not told:
                raise MeasureError(f"measuring took longer than {limit.seconds:g} s")
            for ready in told:
                assert isinstance(ready, connection.Connection)
                try:
                    result = ready.recv()
                    if isinstance(result, ShortageError):
                        raise MeasureError(str(result))
                    results[ready] = result
                except EOFError:
                    wait_for_end(children[ready], _END_S)
                    code = children[ready].exitcode
                    how = "closed its files" if code is None else f"exited with {code}"
                    raise MeasureError(f"a measuring process {how}") from None
        return [results[receiver] for receiver in children]
    finally:
        if len(results) == len(children):
            for child in children.values():
                wait_for_end(child, _END_S)
        kill(children.values(), _END_S)
        for child in children.values():
            sweep_stale_segments(child.pid)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Processes in the block that have not told their results in time raise MeasureError."""
    token = _limit.set(_Limit(seconds, time.monotonic() + seconds))
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """While processes start, Ctrl-C and SIGTERM wait: one half started could not end in order.

    To block the signal is not enough: it may reach another thread of this process, one of NumPy's.
    Where this is not the main thread they do not come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = {
        signum: signal.signal(signum, lambda signum, _frame: received.append(signum))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if received:
        signal.raise_signal(received[0])


def _run_body(body: Callable[[], R], sender: connection.Connection) -> NoReturn:
    leave_stopping_to_the_trainer()
    die_with_parent()
    leave_after(partial(_send_result, body, sender))


def _send_result(body: Callable[[], R], sender: connection.Connection) -> None:
    try:
        try:
            result: R | ShortageError = body()
        except ShortageError as error:  # the user needs no traceback of it
            result = error
        sender.send(result)
    finally:
        terminate(descendants(os.getpid()))  # of environments that nobody has closed
