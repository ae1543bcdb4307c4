"""Signals that mean stop: only the trainer acts on them, and none is lost at a fork."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, an order to stop, a closed terminal: to the trainer all mean save and end."""
_held = threading.local()


def leave_stopping_to_the_trainer() -> None:
    """Have `STOP_SIGNALS` do nothing here; what is started from here gets an ordinary process.

    They reach the whole process group from a terminal, or all of a run's processes from some
    supervisors, and only the trainer acts on them. Were they ignored or blocked, an environment's
    programs would inherit that, and could not be terminated. A handler is reset by exec, and by us
    at fork. A SIGHUP that is ignored stays so: nohup set it, for all.
    """
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN or signum != signal.SIGHUP:
            signal.signal(signum, _do_nothing)
            signal.siginterrupt(signum, False)  # libraries may not expect EINTR
    os.register_at_fork(
        before=_hold_signals, after_in_parent=_take_signals, after_in_child=_be_an_ordinary_fork
    )
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # blocked until here, by `signals_blocked`


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


def _hold_signals() -> None:
    """One that came to a fork before it has its own handlers would be lost."""
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _take_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _be_an_ordinary_fork() -> None:
    """Of an environment: `multiprocessing`, for example, terminates it by SIGTERM."""
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is _do_nothing:
            is_ctrl_c = signum == signal.SIGINT
            signal.signal(signum, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    _take_signals()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Children inherit the blocked signals: none can hit a child before it has its handlers.

    A worker that starts meanwhile is thus always registered before a signal is handled.
    """
    resource_tracker.ensure_running()  # unblocks them when it starts: let it start before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_to(handle: Callable[[int], None]) -> Iterator[None]:
    """`STOP_SIGNALS` call `handle`, and do nothing else. Only the main thread can have it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    pid = os.getpid()

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if os.getpid() == pid:
            handle(signum)
        else:  # a fork of an environment's, which `multiprocessing`, for example, terminates
            is_ctrl_c = signum == signal.SIGINT
            signal.signal(signum, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
            signal.raise_signal(signum)

    # A SIGHUP that is ignored was set so by nohup: the run is to outlive its terminal.
    noted = [s for s in STOP_SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    previous = {s: signal.signal(s, on_signal) for s in noted}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextmanager
def children_noticed() -> Iterator[None]:
    """SIGCHLD is not ignored: else the kernel tells nobody that a worker has ended, nor how.

    In another thread than the main one, which alone can change that, it stays as it is.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN or not is_main:
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
