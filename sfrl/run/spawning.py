"""What a process finds when it starts, and what it has started itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVarTuple

import psutil

from sfrl.run.signals import signals_blocked

Ts = TypeVarTuple("Ts")

ROOT = str(Path(__file__).parents[2])
"""The entry of the search path by which this very sfrl is found."""
_SPAWN = multiprocessing.get_context("spawn")

_TERMINATE_S = 1.0
_LOOK_S = 0.005  # how long to sleep between looks at a process that is to end
_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


def spawn(
    target: Callable[[*Ts], object], *args: *Ts, name: str | None = None, one_thread: bool = False
) -> SpawnProcess:
    """Start a process that runs `target(*args)`, all of which are pickled.

    It finds this very sfrl, wherever another one may be, and all else as this process does. The
    signals that mean stop are blocked until it lets them come (`leave_stopping_to_the_trainer`).

    Args:
        one_thread: for NumPy and its like; see `one_thread_each`.

    Raises:
        OSError: the machine is out of memory, or at a limit.
    """
    with ExitStack() as stack:
        search_path = stack.enter_context(_sfrl_found_first())
        stack.enter_context(signals_blocked())
        stack.enter_context(_main_module_hidden())
        if one_thread:
            stack.enter_context(one_thread_each())
        process = _SPAWN.Process(name=name, target=_run, args=(search_path, target, *args))
        process.start()
    return process


def _run(_search_path: None, target: Callable[[*Ts], object], *args: *Ts) -> None:
    target(*args)


class _SearchPath:
    """Becomes None when it is unpickled, and the child's search path that of its parent.

    It is the first argument of the process: then `sfrl` is imported, by which all its modules are
    found, and nothing yet that might look for a module of the user's.
    """

    def __init__(self, variables: list[str]) -> None:
        self.variables = variables  # that only the start needs

    def __reduce__(self) -> tuple[Callable[[list[str]], None], tuple[list[str]]]:
        return _search_as_the_parent, (self.variables,)


def _search_as_the_parent(variables: list[str]) -> None:
    sys.path.remove(ROOT)
    for name in variables:
        del os.environ[name]


@contextmanager
def _sfrl_found_first() -> Iterator[_SearchPath]:
    """A process started in the block finds this very sfrl before all else."""
    sys.path.insert(0, ROOT)
    try:
        with pythons_own_found() as added:
            yield _SearchPath(added)
    finally:
        sys.path.remove(ROOT)


@contextmanager
def pythons_own_found() -> Iterator[list[str]]:
    """A process started in the block does not take the user's selectors.py for Python's.

    Python lets `python -c`, as which multiprocessing starts all it needs, look first where the user
    stands. Given are the variables that tell it not to, if the user has not.
    """
    with _variables_set({"PYTHONSAFEPATH": "1"}) as added:
        yield added


@contextmanager
def _main_module_hidden() -> Iterator[None]:
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
    with _variables_set(dict.fromkeys(_THREAD_LIMITS, number)):
        yield


@contextmanager
def _variables_set(variables: Mapping[str, str]) -> Iterator[list[str]]:
    """Those that the user has not set, whose names are given, are set in the block."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield added
    finally:
        for name in added:
            del os.environ[name]


def wait_for_end(process: SpawnProcess, timeout_s: float) -> None:
    """Not by `join`: where an environment has closed the sentinel that waits without limit."""
    end_s = time.monotonic() + timeout_s
    while process.exitcode is None and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(_LOOK_S, left_s))


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that it has started, and these have, as far as they live."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def terminate(processes: list[psutil.Process]) -> None:
    """End them by SIGTERM; by SIGKILL those that live on for a second, as VizDoom's engine does."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_TERMINATE_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()


def kill(processes: Iterable[SpawnProcess], timeout_s: float) -> bool:
    """Kill them, and terminate what they have started; whether they have ended within that time."""
    living = [process for process in processes if process.pid and process.is_alive()]
    for process in living:
        os.kill(process.pid or 0, signal.SIGSTOP)  # or it starts more while these are listed
    orphans = [orphan for process in living for orphan in descendants(process.pid or 0)]
    for process in living:
        process.kill()
    for process in living:
        wait_for_end(process, timeout_s)
    terminate(orphans)
    return all(process.exitcode is not None for process in living)
