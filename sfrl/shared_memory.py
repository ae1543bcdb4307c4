"""Arrays in shared memory: created by the trainer, attached by name in its children.

Segments are files in /dev/shm named `sfrl-<pid of the trainer>-<n>-<name>`, so that a leftover can
be told from a living run's. They are made by hand rather than by
`multiprocessing.shared_memory`, for two reasons: the space is reserved at creation, so that a full
/dev/shm is an error here and not a bus error in some child later; and no resource tracker unlinks
a segment because one child that attached it has gone.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import DTypeLike, NDArray

SHM_DIR = Path("/dev/shm")
MIB = 1024 * 1024
_segment_numbers: Iterator[int] = itertools.count()


class Stopped(Exception):
    """The run is stopping: raised out of every blocking call, caught by the process loop alone."""


class SharedArray:
    """A NumPy array in shared memory, zero-filled. Pickling it sends the name, not the data.

    Attributes:
        array: the view, [*shape] of `dtype`; the same memory in every process.

    Raises:
        MemoryError: /dev/shm has less room than the array needs.
    """

    def __init__(
        self, name: str | Path, shape: tuple[int, ...], dtype: DTypeLike, *, create: bool = True
    ) -> None:
        """`name` makes a segment of this process; a path is one from `segment_path`."""
        self.path = name if isinstance(name, Path) else segment_path(name)
        self.shape = shape
        self.dtype = np.dtype(dtype)
        if create:
            self._reserve(max(math.prod(shape) * self.dtype.itemsize, 1))
        self._attach()

    def _reserve(self, num_bytes: int) -> None:
        self.unlink()  # a dead process with the same pid may have left one of this name
        fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            self.unlink()
            raise MemoryError(_shortage_text(num_bytes, f"segment {self.path.name}")) from error
        finally:
            os.close(fd)

    def _attach(self) -> None:
        with open(self.path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.array: NDArray[Any] = np.ndarray(self.shape, self.dtype, buffer=self._memory)

    def unlink(self) -> None:
        """Remove the name; the memory goes when the last process that attached it lets go."""
        self.path.unlink(missing_ok=True)

    def __getstate__(self) -> tuple[Path, tuple[int, ...], np.dtype[Any]]:
        return self.path, self.shape, self.dtype

    def __setstate__(self, state: tuple[Path, tuple[int, ...], np.dtype[Any]]) -> None:
        self.path, self.shape, self.dtype = state
        self._attach()


class StopFlag:
    """The run's one stop word. Set once, never cleared; every wait looks at it.

    Attributes:
        word: uint32 [1]; not 0 once the run is stopping.
    """

    def __init__(self) -> None:
        self._shared = SharedArray("stop", (1,), np.uint32)

    @property
    def word(self) -> NDArray[np.uint32]:
        return self._shared.array

    @property
    def is_set(self) -> bool:
        return bool(self._shared.array[0])

    def set(self) -> None:
        self._shared.array[0] = 1

    def unlink(self) -> None:
        self._shared.unlink()


def segment_path(name: str) -> Path:
    """A free path for a segment that belongs to this process, whoever creates it."""
    return SHM_DIR / f"sfrl-{os.getpid()}-{next(_segment_numbers)}-{name}"


def shm_shortage(needed_bytes: int, what: str) -> str | None:
    """What to tell the user if /dev/shm has no room for `needed_bytes` of `what`, else None."""
    if needed_bytes <= shutil.disk_usage(SHM_DIR).free:
        return None
    return _shortage_text(needed_bytes, what)


def _shortage_text(needed_bytes: int, what: str) -> str:
    available = shutil.disk_usage(SHM_DIR).free
    return (
        f"{what} needs {needed_bytes / MIB:.0f} MiB of shared memory, but {SHM_DIR} has "
        f"{available / MIB:.0f} MiB available; lower --num-workers, --envs-per-worker or "
        f"--rollout-length, or enlarge it (mount -o remount,size=8G {SHM_DIR}; "
        f"in a container --shm-size=8g)"
    )


def unlink_segments(pid: int) -> None:
    """Remove every segment that the process `pid` created."""
    for path in SHM_DIR.glob(f"sfrl-{pid}-*"):
        path.unlink(missing_ok=True)


def sweep_stale_segments() -> list[str]:
    """Remove the segments of runs whose trainer is dead; return their names."""
    swept = []
    for path in SHM_DIR.glob("sfrl-*"):
        match = re.match(r"sfrl-(\d+)-", path.name)
        if match and not psutil.pid_exists(int(match[1])):
            with suppress(PermissionError):  # another user's
                path.unlink(missing_ok=True)
                swept.append(path.name)
    return swept
