"""A run's folder: one trainer at a time writes it, and what lies in it may be a stranger's."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_FILES = ("config.json", "log.txt", "metrics.jsonl", "best.pt")  # and event files, `latest-*.pt`


class RunFolderError(ValueError):
    """The folder cannot be used for this; the text names it and says what to do."""


_locks: set[int] = set()  # descriptors with a lock, of this process


def lock(run_dir: Path) -> int:
    """Keep other trainers out until `unlock` of what it returns, or this process dies.

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
    _locks.add(descriptor)
    return descriptor


def unlock(descriptor: int) -> None:
    if descriptor in _locks:
        _locks.remove(descriptor)
        os.close(descriptor)


def _leave_to_parent() -> None:
    """In a forked process: the locks are the parent's, and end with it alone."""
    for descriptor in list(_locks):
        unlock(descriptor)


os.register_at_fork(after_in_child=_leave_to_parent)  # an environment with --serial may fork


def check(run_dir: Path) -> None:
    """See that nothing in it leads elsewhere or never ends when it is read.

    `run_dir` itself may be a link: it is the user who names it.

    Raises:
        RunFolderError: something is neither a file nor a folder (a link, a pipe, a device), or one
            of them stands where a run has the other; or the folder cannot be looked into.
    """
    for folder in (run_dir, run_dir / "checkpoints"):
        for entry in _entries(folder):
            is_folder = entry.is_dir(follow_symlinks=False)
            if not (is_folder or entry.is_file(follow_symlinks=False)):
                raise RunFolderError(
                    f"{entry.path} is neither a file nor a folder, and a run has nothing else; "
                    f"put the file itself in its place, or delete it"
                )
            if is_folder and (entry.name in _FILES or entry.name.endswith(".tmp")):
                raise RunFolderError(f"{entry.path} is a folder, and must be a file; move it away")
            if not is_folder and entry.name == "checkpoints":
                raise RunFolderError(f"{entry.path} is a file, and must be a folder; move it away")


def check_new(run_dir: Path) -> None:
    """See that a run can begin in it without touching what another one has left.

    Raises:
        RunFolderError: as `check`; or there is something of a run in it, be it only a log.
    """
    check(run_dir)
    found = sorted(entry.name for entry in _entries(run_dir) if _is_of_a_run(entry.name))
    if not found:
        return
    checkpoints = sorted(p for p in (run_dir / "checkpoints").glob("*.pt") if p.is_file())
    if any(path.name.startswith("latest-") for path in checkpoints):
        remedy = "add --resume to go on with it, or name another folder"
    elif checkpoints:
        remedy = f"it has {checkpoints[0].name}, which --resume does not use: name another folder"
    else:
        remedy = f"it has no checkpoint yet: delete its {', '.join(found)}, or name another folder"
    raise RunFolderError(f"run_dir={run_dir} already holds a run; {remedy}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in the folder, by name; nothing if there is none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be looked into: {error.strerror}; name a folder of your own"
        ) from error


def _is_of_a_run(name: str) -> bool:
    name = name.removesuffix(".tmp")
    return name in (*_FILES, "checkpoints") or name.startswith("events.out.tfevents.")


def open_new(path: Path) -> BinaryIO:
    """An empty file of this name. What was there goes; if it was a link, its target stays."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the umask
    return os.fdopen(descriptor, "wb")


def open_to_append(path: Path) -> BinaryIO:
    """The file, made if missing, unbuffered, to read and to write at its end.

    Raises:
        OSError: it is a link, a pipe or a device, which is neither followed nor waited for; or it
            cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "a+b", buffering=0)


def reopened_to_append(path: Path, file: BinaryIO, is_ours: Callable[[], bool]) -> BinaryIO:
    """`file`, or if `path` is no longer that one, the file that it is now.

    If it was deleted it comes back with all that it held. If it was moved away, another begins.

    Args:
        is_ours: whether the folder is still this run's. Another run may have begun in its place.

    Raises:
        OSError: it cannot be made or filled; `file` is open still, so that it can be tried again.
    """
    if is_at(path, file.fileno()):
        return file
    if not is_ours():
        raise OSError(errno.ESTALE, "the folder is not this run's any more", str(path))
    if os.fstat(file.fileno()).st_nlink == 0 and not os.path.lexists(path):
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with open_new(temporary) as copy:
                file.seek(0)
                shutil.copyfileobj(file, copy)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        os.replace(temporary, path)
    new = open_to_append(path)
    file.close()
    return new


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the path still names what was opened, rather than nothing or another one."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
