"""A run's folder: one trainer at a time writes it, and what lies in it may be a stranger's."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO


class RunFolderError(ValueError):
    """The folder cannot be used for this; the text names it and says what to do."""


def lock(run_dir: Path) -> int:
    """Keep other trainers out until the returned descriptor is closed, or this process dies.

    Raises:
        RunFolderError: another one is at work in it.
    """
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunFolderError(
            f"run_dir={run_dir} is in use by a run that still goes on; stop that one first, or "
            f"name another folder with --run-dir"
        ) from None
    return descriptor


def check(run_dir: Path) -> None:
    """See that nothing in it leads elsewhere or never ends when it is read.

    Raises:
        RunFolderError: something is neither a file nor a folder: a link, a pipe, a device.
    """
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise RunFolderError(
                    f"{path} is neither a file nor a folder, and a run has nothing else; "
                    f"put the file itself in its place, or delete it"
                )


def open_new(path: Path) -> BinaryIO:
    """An empty file of this name. What was there goes; if it was a link, its target stays."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the umask
    return os.fdopen(descriptor, "wb")
