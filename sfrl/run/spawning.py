"""What a process finds when it starts, and what it has started itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

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
