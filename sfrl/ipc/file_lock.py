"""A lock between processes that ends with its holder, however that dies."""

from __future__ import annotations

import fcntl
import os

from sfrl.ipc.shared_memory import segment_path


class FileLock:
    """A context manager: one process at a time is inside it.

    The kernel keeps the lock, on a file of the run's in /dev/shm, and takes it from a process that
    is killed. Picklable while a process is spawned.
    """

    def __init__(self, name: str) -> None:
        self._descriptor: int | None = None  # of this process: one that is shared locks nobody out
        self._path = segment_path(name)
        self._path.touch(mode=0o600)

    def __enter__(self) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        assert self._descriptor is not None
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}
