"""What every child process does around its worker's loop, and what it sends the trainer."""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Generic, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import psutil
from setproctitle import setproctitle

from envs import NonFiniteError
from envs.forks import end_if_forked, forks_noticed
from envs.logs import logging_to
from sfrl.checkpoint import CheckpointError
from sfrl.leaving import leave
from sfrl.metrics import MetricsState
from sfrl.shared_memory import Field, SharedArray, ShortageError, StopFlag, Stopped

WAIT_TIMEOUT_S = 0.5
DELIVERY_TIMEOUT_S = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, an order to stop, a closed terminal: to the trainer all mean save and end."""

_PR_SET_PDEATHSIG = 1
_MAILBOX_BYTES = 4 << 20  # asked for; the kernel gives less (net.core.wmem_max)
_MAX_MESSAGE_BYTES = 128 << 10
_MAX_TEXT = 20_000  # characters, at most 80 kB: the last of a traceback, the first of a log line


class EpisodeEnded(NamedTuple):
    """The game's own score, unclipped, and the length in decisions."""

    episode_return: float
    length: int
    info: Mapping[str, float] = {}  # the numbers in its last `info`; nobody edits it


class LearnerReport(NamedTuple):
    """One training batch: means over its optimizer steps, and totals since the start."""

    metrics: dict[str, float]
    lag_counts: list[int]  # rows by policy lag, the last bin holds all above


class CheckpointSaved(NamedTuple):
    path: str
    best_score: float | None  # that of best.pt, if this one was kept as such, too
    is_last: bool = False  # it answers the request for the run's last one


class CheckpointFailed(NamedTuple):
    """The disk did not take it; those that were there still are."""

    reason: str
    what: str = "the checkpoint"  # or best.pt


class Notice(NamedTuple):
    """A line for the log, at a level of `logging`."""

    level: int
    text: str


class Failure(NamedTuple):
    """What a child says before it exits with code 1."""

    traceback: str
    ends_run: bool  # the user wants no other process in its place


Report = EpisodeEnded | LearnerReport | CheckpointSaved | CheckpointFailed | Notice | Failure
"""What a child tells the trainer."""


class CheckpointRequest(NamedTuple):
    """The trainer to the learner. `best_score` is set if the weights are to be kept as the best.

    After the run's last checkpoint the learner trains no more: it would be lost.
    """

    metrics: MetricsState
    best_score: float | None
    is_last: bool = False


M = TypeVar("M")


class TrainsOnImportError(RuntimeError):
    """A module that a run has imported calls `sfrl.train`, which would import it once more."""

    def __init__(self) -> None:
        super().__init__(
            "this module calls sfrl.train when it is imported: put the call under "
            "if __name__ == '__main__'"
        )


class Mailbox(Generic[M]):
    """Messages that are not of fixed size, from one process to one other: a pair of sockets.

    The kernel takes each message whole or not at all, and knows no lock that a killed process could
    leave locked. A message that finds no room is dropped and counted: statistics are not worth a
    wait. Some hundreds of small ones fit; one of more than `_MAX_MESSAGE_BYTES` never does.
    """

    FIELD: Field = ((1,), np.int64)

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAILBOX_BYTES)
        self._receiver.setblocking(False)
        self._dropped = SharedArray("dropped-messages", *self.FIELD)

    @property
    def dropped(self) -> int:
        """Messages lost so far, in whatever process."""
        return int(self._dropped.array[0])

    def put(self, message: M, timeout_s: float = 0.0) -> bool:
        """Whether it was taken."""
        data = pickle.dumps(message)
        self._sender.settimeout(timeout_s)
        try:
            if len(data) <= _MAX_MESSAGE_BYTES:
                self._sender.send(data)
                return True
        except (BlockingIOError, TimeoutError):
            pass
        except OSError as error:  # larger than the kernel's own limit, or no memory of its own left
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM):
                raise
        self._dropped.array[0] += 1
        return False

    def get_all(self) -> list[M]:
        """What has arrived, oldest first; never waits."""
        messages: list[M] = []
        while True:
            try:
                data = self._receiver.recv(_MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return messages
            messages.append(pickle.loads(data))

    def __del__(self) -> None:
        self._receiver.close()
        self._sender.close()


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


class Worker(Protocol):
    """One role of the run. The same object runs in a process of its own or in the serial loop."""

    def step(self) -> bool:
        """Do what is ready, without waiting; say whether anything was."""

    def wait(self, timeout_s: float) -> None:
        """Sleep until something is ready. Raises Stopped once the run is stopping."""

    def close(self) -> None:
        """Finish: called once, also when the run is stopping."""


def worker_loop(worker: Worker, stop: StopFlag) -> None:
    """The loop of every process: work while there is work, sleep while there is none.

    A worker that failed is not closed: what its environment does then must not delay the report.
    """
    try:
        while not stop.is_set:
            if not worker.step():
                worker.wait(WAIT_TIMEOUT_S)
    except Stopped:
        pass
    worker.close()


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
            # Not of our code: who reads of it needs no place there.
            is_told = isinstance(error, ShortageError | CheckpointError | TrainsOnImportError)
            text = str(error) if is_told else traceback.format_exc()[-_MAX_TEXT:]
            failure = Failure(text, ends_run=isinstance(error, NonFiniteError))
            try:
                reports.put(failure, DELIVERY_TIMEOUT_S)
            except OSError:  # an environment has closed what it did not open
                sys.stderr.write(text)
            terminate(descendants(os.getpid()))  # nobody will close the environments now
            leave(1)  # the usual way out waits for threads, which an environment may have left
        end_if_forked()
        leave(0)  # likewise


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that it has started, and these have, as far as they live."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def terminate(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()


# --- signals ---


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


_held = threading.local()


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


# --- what a process finds when it starts ---

_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """A process started by spawn in the block does not run the program's main module once more.

    `multiprocessing` lets it, because what it is to do may be defined there. Ours never is: so a
    script needs no `if __name__ == "__main__"`, and `python -`, of which there is no file, works.
    """
    main = vars(sys.modules["__main__"])
    hidden = {name: main[name] for name in main.keys() & {"__spec__", "__file__"}}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(hidden)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """A process started in the block has one thread in NumPy and its like, not one for each core.

    They read these variables when they are imported. Those that the user has set stay, and
    OMP_NUM_THREADS, which most of them read as well, then says what the others are.
    """
    number = os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]
    added = [name for name in _THREAD_LIMITS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, number))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


_serves_a_run = False


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
