"""What every child process does around its work: it tells of its end, and dies with the trainer."""

from __future__ import annotations

import ctypes
import io
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from setproctitle import setproctitle

from sfrl.envs import NonFiniteError, TrainsOnImportError
from sfrl.envs.forks import end_if_forked, forks_noticed
from sfrl.envs.logs import logging_to
from sfrl.ipc.mailbox import DELIVERY_TIMEOUT_S, Mailbox
from sfrl.ipc.messages import EndsRun, Failure, Notice, Report
from sfrl.ipc.shared_memory import ShortageError, Stopped
from sfrl.records.checkpoint import CheckpointError
from sfrl.run.leaving import leave
from sfrl.run.signals import leave_stopping_to_the_trainer
from sfrl.run.spawning import descendants, terminate

_PR_SET_PDEATHSIG = 1
_MAX_TEXT = 20_000  # characters, at most 80 kB: the last of a traceback, the first of a log line
_serves_a_run = False


def run_child(name: str, reports: Mailbox[Report], body: Callable[[], None]) -> NoReturn:
    """Turn this process into the component `name` and run `body`.

    Whatever `body` raises, `SystemExit` of an environment included, is sent to the trainer with its
    traceback and ends the process with exit code 1; otherwise it ends with 0. When the trainer
    dies, however it dies, the kernel ends this process.
    """
    setproctitle(f"sfrl {name}")
    leave_stopping_to_the_trainer()
    die_with_parent()
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            # By lines, which a pipe keeps whole, whoever else writes to it.
            file.reconfigure(line_buffering=True, errors="backslashreplace")
    logging.captureWarnings(True)
    with logging_to(_NoticeHandler(reports)), forks_noticed():
        try:
            body()
        except Stopped:  # while it was still starting
            pass
        except BaseException as error:  # that of an environment may be of any kind
            end_if_forked(error)
            # Not of our code: the user needs no traceback.
            is_told = isinstance(error, ShortageError | CheckpointError | TrainsOnImportError)
            text = str(error) if is_told else traceback.format_exc()[-_MAX_TEXT:]
            failure = Failure(text, ends_run=isinstance(error, NonFiniteError | EndsRun))
            try:
                reports.put(failure, DELIVERY_TIMEOUT_S)
            except OSError:  # an environment has closed what it did not open
                sys.stderr.write(text)
            terminate(descendants(os.getpid()))  # nobody will close the environments now
            leave(1)  # the usual way out waits for threads, which an environment may have left
        end_if_forked()
        leave(0)  # likewise


class _NoticeHandler(logging.Handler):
    """Sends a child's log lines to the trainer, whose terminal it is."""

    def __init__(self, reports: Mailbox[Report]) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._reports.put(Notice(record.levelno, self.format(record)[:_MAX_TEXT]))
        except Exception:  # as logging's own handlers do: a faulty log line must not end the worker
            self.handleError(record)


def serves_a_run() -> bool:
    """Whether a run has started this process."""
    return _serves_a_run


def die_with_parent(pid: int | None = None) -> None:
    """Have the kernel kill this process when the trainer goes (Linux): it serves a run.

    Args:
        pid: the trainer's; None: that of multiprocessing's parent.
    """
    global _serves_a_run
    _serves_a_run = True
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if pid is None and (parent := multiprocessing.parent_process()) is not None:
        pid = parent.pid
    if os.getppid() != pid:  # it had gone before the line above
        raise SystemExit(1)
