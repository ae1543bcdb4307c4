"""Arrays in shared memory: created by the trainer, attached by name in its children.

Segments are files in a folder of the run's own, `/dev/shm/sfrl-<pid of the trainer>-<random>`. The
trainer holds a lock on the folder, which the kernel takes from it when it dies: so a leftover can
be told from a living run's, also where containers share /dev/shm but do not see each other's
processes. Segments are made by hand rather than by `multiprocessing.shared_memory`, for two
reasons: the space is reserved at creation, so that a full /dev/shm is an error here and not a bus
error in some child later; and no resource tracker unlinks a segment because one child that attached
it has gone.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import itertools
import math
import mmap
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

SHM_DIR = Path("/dev/shm")
MIB = 1024 * 1024
_NOT_IN_NAMES = re.compile(r"[^\w.-]", re.ASCII)
_MAX_NAME = 64  # characters of a segment's name
Field = tuple[tuple[int, ...], DTypeLike]  # the shape of a segment, and what is in it
_segment_numbers: Iterator[int] = itertools.count()
_own_folder: tuple[Path, int] | None = None  # of this process, and the descriptor with its lock


class Stopped(Exception):
    """The run is stopping: raised out of every blocking call, caught by the process loop alone."""


class ShortageError(MemoryError):
    """The machine lacks something that the run needs; the text has both numbers and the remedy."""


class SharedArray:
    """A NumPy array in shared memory, zero-filled. Pickling it sends the name, not the data.

    Attributes:
        array: the view, [*shape] of `dtype`; the same memory in every process.

    Raises:
        ShortageError: /dev/shm has less room than the array needs.
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
        fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            self.unlink()
            what = f"segment {self.path.name}"
            if error.errno == errno.EFBIG:
                limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
                raise ShortageError(
                    f"{what} needs a file of {num_bytes} bytes in {SHM_DIR}, and the limit on "
                    f"files is {limit} (ulimit -f); raise it"
                ) from error
            raise ShortageError(_shortage_text(num_bytes, what)) from error
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

    FIELD: Field = ((1,), np.uint32)

    def __init__(self) -> None:
        self._shared = SharedArray("stop", *self.FIELD)

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
    """A free path for a segment that belongs to this process, whoever creates it.

    The number tells segments apart. The name, which may have a key of an environment's in it, tells
    people which one it is: what no file may be named is left out.
    """
    global _own_folder
    if _own_folder is None:
        _own_folder = _make_folder()
    return _own_folder[0] / f"{next(_segment_numbers)}-{_NOT_IN_NAMES.sub('', name)[:_MAX_NAME]}"


def _make_folder() -> tuple[Path, int]:
    """A new folder, which only this user may enter, and the descriptor that holds its lock."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"sfrl-{os.getpid()}-", dir=SHM_DIR))
        except OSError as error:
            raise ShortageError(_unusable_text(error.strerror)) from error
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process's sweep was faster
            continue
        if _lock(descriptor) and folder.exists():
            atexit.register(unlink_segments)  # however this process ends, except for SIGKILL
            return folder, descriptor
        os.close(descriptor)


def _leave_to_parent() -> None:
    """In a forked process: folder and lock are the parent's, and end with it alone."""
    global _own_folder
    if _own_folder is not None:
        os.close(_own_folder[1])
        _own_folder = None


os.register_at_fork(after_in_child=_leave_to_parent)  # an environment with --serial may fork


def _lock(descriptor: int) -> bool:
    """Whether nobody else held the lock. It ends with the descriptor, or the process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def segment_bytes(*fields: Field) -> int:
    """What segments of these take in /dev/shm, which gives whole pages."""
    sizes = [max(math.prod(shape) * np.dtype(dtype).itemsize, 1) for shape, dtype in fields]
    return sum(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)


_FEWER = "lower --num-workers, --envs-per-worker or --rollout-length"


def shm_shortage(needed_bytes: int, what: str, remedy: str = _FEWER) -> str | None:
    """What to tell the user if /dev/shm has no room for `needed_bytes` of `what`, else None."""
    if not os.access(SHM_DIR, os.W_OK | os.X_OK):
        return _unusable_text("it cannot be written" if SHM_DIR.is_dir() else "it is missing")
    free = shutil.disk_usage(SHM_DIR).free
    return None if needed_bytes <= free else _shortage_text(needed_bytes, what, remedy)


def _shortage_text(needed_bytes: int, what: str, remedy: str = _FEWER) -> str:
    room = shutil.disk_usage(SHM_DIR)
    size = math.ceil((room.used + needed_bytes) / MIB)  # what others have there stays
    return (
        f"{what} needs {math.ceil(needed_bytes / MIB)} MiB of shared memory, but {SHM_DIR} has "
        f"{room.free / MIB:.0f} MiB available; {remedy}, or enlarge it (mount -o "
        f"remount,size={size}m {SHM_DIR}; in a container --shm-size={size}m)"
    )


def _unusable_text(why: str | None) -> str:
    return (
        f"{SHM_DIR}, where the processes of a run share memory, cannot be used: {why}; mount it, "
        f"writable (mount -t tmpfs -o mode=1777 tmpfs {SHM_DIR})"
    )


def unlink_segments() -> None:
    """Remove every segment that belongs to this process."""
    global _own_folder
    if _own_folder is not None:
        folder, descriptor = _own_folder
        _own_folder = None
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep_stale_segments(pid: int | None = None) -> list[str]:
    """Remove the segments of processes that have died, or of this one; return their folders.

    Anybody may put anything there: only folders of this user are looked into.
    """
    swept = []
    for folder in SHM_DIR.glob(f"sfrl-{pid or '*'}-*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # a link, a file, another user's, or just gone
        try:
            if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)
                swept.append(folder.name)
        finally:
            os.close(descriptor)
    return swept
