"""The end of a process in which an environment may have left threads and processes behind."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

_EXIT_S = 1.0  # for exit functions: multiprocessing's waits for processes that it has started


def leave_after(work: Callable[[], int | None]) -> NoReturn:
    """Do the work, and end this process with the code that it returns.

    As the interpreter does it, exceptions and `sys.exit` included, but that waits for all threads.
    """
    code: object = 1
    try:
        code = work()
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    leave(code or 0)


def leave(code: int) -> NoReturn:
    """End this process now, with all that is registered for its exit, but wait for no thread.

    Signals are ignored: one that comes now must not turn a failure into a success.
    """
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
    _flush()
    timer = threading.Timer(_EXIT_S, os._exit, (code,))
    timer.daemon = True
    timer.start()
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Nobody reads what is left, or an environment has closed it: the code tells how it ended.
        with suppress(OSError, ValueError):
            stream.flush()
