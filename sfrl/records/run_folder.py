"""A run's folder: one trainer at a time writes it, and what lies in it may be a stranger's."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

RUNS = Path("runs")
"""Where runs are made, and looked for, unless a folder is named."""

BEGUN = "training "
"""How the log of each start begins."""
LAST_CHECKPOINT = "last checkpoint: "
"""How the log of a run begins its last line, if it ends in order."""
FAILED = "the run failed: "
"""How the log begins the reason of a failure."""
UNTRAINED = "nothing was learned: a new run may begin in this folder"
"""How the log of a run ends that leaves nothing else."""

REQUESTS = ("checkpoint", "stop")
"""What others may ask a live run for. Each is an empty file in its folder (`request`)."""

LATEST_NAME = re.compile(r"latest-(\d+)\.pt")  # of a checkpoint that --resume goes on from
# What `sfrl plot`, `sfrl video` and `sfrl demo` make in it.
SCORE, VIDEO, DEMO = "score.png", "video.mp4", "demo.html"
_OWN_LATEST = re.compile(r"latest-\d{12,}\.pt")  # as ours are named; others have a latest-1.pt, too
_CHECKPOINT = re.compile(r"(latest-\d+\.pt(\.left)?|best\.pt|memory\.npz)(\.tmp)?")
_FILM = re.compile(r"(\d+-(latest|best)|unfinished-\d+)\.mp4")  # of --video-every
_MAX_LINE = 4096
OLDER_LOG = "log.txt.1"
# And event files, `latest-*.pt`.
_FILES = ("config.json", "log.txt", OLDER_LOG, "metrics.jsonl")
_SOME_SETTINGS = (b'"env": "', b'"frameskip": ', b'"rollout_length": ')
# What only a run of sfrl has in such a file, within so many bytes.
_MARKS: dict[str, Callable[[bytes], object]] = {
    "config.json": lambda text: all(mark in text for mark in _SOME_SETTINGS),
    "log.txt": re.compile(
        rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} {BEGUN}\S+ in ".encode(), re.M
    ).search,
    "metrics.jsonl": re.compile(rb'\{"time_s": .*"env_frames": ').match,
}
_MOST_MARKED = 65_536


class RunFolderError(ValueError):
    """The folder cannot be used for this; the text names it and says what to do."""


_locks: set[int] = set()  # descriptors with a lock, of this process
_made: list[Path] = []  # folders that this process has made


def started_in() -> Path:
    """The working folder. Raises RunFolderError if it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise RunFolderError(
            f"the folder where this was started is gone ({error.strerror}), and the processes of a "
            f"run start in it; change to one that is there"
        ) from error


def told(path: str | Path, folder: Path) -> Path:
    """The path, as short as one who stands in `folder` would type it."""
    path = Path(path)
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def expanded(setting: str, path: str) -> str:
    """With the home folder for `~`, which shells leave as it is within --run-dir=~/x.

    Raises:
        RunFolderError: this user has none.
    """
    if not path.startswith("~"):
        return path
    own_home = os.environ.get("HOME", "/")  # "" would make /x of ~/x
    found = os.path.expanduser(path)
    if not os.path.isabs(found) or (path[1:2] in ("", "/") and not own_home):
        raise RunFolderError(
            f"{setting}={path} begins with ~, and there is no such home folder (HOME); name it in "
            f"full, or as ./{path} if that is its name"
        )
    return found


def file_to_write(setting: str, path: str, *, is_replaced: bool = False) -> Path:
    """The file in full, with the home folder for `~`.

    Args:
        is_replaced: one that is there is not written into, but gives way to another.

    Raises:
        RunFolderError: it cannot be written.
    """
    file = Path(expanded(setting, path)).absolute()
    target = file.resolve()
    place = target if target.exists() and not (is_replaced and target.is_file()) else target.parent
    if target.is_dir() or not os.access(place, os.W_OK):
        raise RunFolderError(
            f"{setting}={path} cannot be written; name a file in a folder of yours"
        )
    return file


def make(run_dir: Path) -> None:
    """A new folder. `remove_empty` removes it if nothing comes into it.

    Raises:
        FileExistsError: there is one.
        RunFolderError: it cannot be made.
    """
    with problems_told(run_dir):
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_dir.mkdir()
    except FileExistsError:
        raise
    except OSError as error:
        raise RunFolderError(_cannot_write(run_dir, error)) from error
    _made.append(run_dir)


def remove_empty() -> None:
    """Those that `make` has made and nobody has used."""
    while _made:
        with suppress(OSError):  # there is something in it, or it is gone
            _made.pop().rmdir()


@contextmanager
def problems_told(run_dir: Path) -> Iterator[None]:
    """Raises RunFolderError, with the reason and a remedy, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(_cannot_write(run_dir, error)) from error


def _cannot_write(run_dir: Path, error: OSError) -> str:
    remedy = "name a folder of your own with --run-dir"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "make room there (or raise ulimit -f), or name a folder elsewhere with --run-dir"
    place = f" ({error.filename})" if error.filename else ""
    return f"run_dir={run_dir} cannot be written: {error.strerror}{place}; {remedy}"


def lock(run_dir: Path) -> int:
    """Keep other trainers out until `unlock` of what it returns, or this process dies.

    Raises:
        RunFolderError: another one is at work in it.
    """
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    while not _has_locked(descriptor, fcntl.LOCK_EX):
        # Whoever only looks (`is_locked`) shares its lock, and lets go at once.
        if not _has_locked(descriptor, fcntl.LOCK_SH):
            os.close(descriptor)
            raise _in_use(run_dir)
    _locks.add(descriptor)
    return descriptor


def check_unused(run_dir: Path) -> None:
    """Raises RunFolderError: a trainer is at work in it."""
    if os.access(run_dir, os.R_OK) and run_dir.is_dir() and is_locked(run_dir):
        raise _in_use(run_dir)


def _in_use(run_dir: Path) -> RunFolderError:
    return RunFolderError(
        f"run_dir={run_dir} is in use by a run that still goes on; stop that one first, or name "
        f"another folder with --run-dir"
    )


def is_locked(run_dir: Path) -> bool:
    """Whether a trainer is at work in it."""
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return not _has_locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _has_locked(descriptor: int, kind: int) -> bool:
    """Without waiting. A lock of the other kind that it had is let go, whatever comes of it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    if descriptor in _locks:
        _locks.remove(descriptor)
        os.close(descriptor)


def _leave_to_parent() -> None:
    """In a forked process: the locks are the parent's, and end with it alone."""
    for descriptor in list(_locks):
        unlock(descriptor)


os.register_at_fork(after_in_child=_leave_to_parent)  # an environment with --serial may fork


def request(run_dir: Path, what: str) -> None:
    """Ask the run that is live there for one of `REQUESTS`. Its trainer looks once a second.

    Raises:
        RunFolderError: no run is live there, or its folder cannot be written.
    """
    if not is_locked(run_dir):
        raise RunFolderError(f"{run_dir.name} is not live, so nobody would take the request")
    try:
        # No link is followed, and what is there has been asked for already.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        descriptor = os.open(_request_path(run_dir, what), flags, 0o666)
    except FileExistsError:
        return
    except OSError as error:
        raise RunFolderError(
            f"{run_dir.name} cannot be asked: its folder cannot be written ({error.strerror})"
        ) from error
    os.close(descriptor)


def take_request(run_dir: Path, what: str) -> bool:
    """Whether the run has been asked for it since the last call."""
    try:
        os.unlink(_request_path(run_dir, what))
    except OSError:  # mostly, there is none
        return False
    return True


def drop_requests(run_dir: Path) -> None:
    """Those that no trainer has taken."""
    for what in REQUESTS:
        take_request(run_dir, what)


def _request_path(run_dir: Path, what: str) -> str:
    return f"{run_dir}/{what}.request"


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
            is_of_file = entry.name in (*_FILES, "best.pt") or entry.name.endswith(".tmp")
            if is_folder and is_of_file:
                raise RunFolderError(f"{entry.path} is a folder, and must be a file; move it away")
            if not is_folder and entry.name == "checkpoints":
                raise RunFolderError(f"{entry.path} is a file, and must be a folder; move it away")


def remove(run_dir: Path) -> list[str]:
    """Delete what a run has written, and the folder if nothing else is in it.

    Returns:
        The paths of what is left, which is not the run's.

    Raises:
        RunFolderError: a trainer is at work in it; or as `check`.
        OSError: something cannot be deleted.
    """
    descriptor = lock(run_dir)
    try:
        check(run_dir)
        folders = {"checkpoints": _CHECKPOINT, "videos": _FILM}
        for name, own in folders.items():
            for entry in _entries(run_dir / name):
                if own.fullmatch(entry.name):
                    os.unlink(entry.path)
        drop_requests(run_dir)
        for entry in _entries(run_dir):
            is_own = _is_of_a_run(entry.name) or entry.name in (SCORE, VIDEO, DEMO)
            if is_own and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
        paths = [*(run_dir / name for name in folders), run_dir]
        left = [entry.path for folder in paths for entry in _entries(folder)]
        for folder in paths:
            with suppress(FileNotFoundError):
                if not _entries(folder):
                    folder.rmdir()
        return [path for path in left if os.path.exists(path)]
    finally:
        unlock(descriptor)


def check_new(run_dir: Path) -> None:
    """See that a run can begin in it without touching what another one has left.

    Raises:
        RunFolderError: as `check`; or there is something of a run in it, be it only a log.
    """
    check(run_dir)
    found = sorted(entry.name for entry in _entries(run_dir) if _is_of_a_run(entry.name))
    logs = [name for name in found if name in ("log.txt", OLDER_LOG)]
    if not found or (found == logs and _has_ended_untrained(run_dir / "log.txt")):
        return
    checkpoints = [entry.name for entry in _entries(run_dir / "checkpoints")]
    if any(LATEST_NAME.fullmatch(name) for name in checkpoints):
        remedy = "add --resume to go on with it, or name another folder"
    elif checkpoints:
        remedy = f"it has {checkpoints[0]}, which --resume does not use: name another folder"
    else:
        remedy = f"it has no checkpoint yet: delete its {', '.join(found)}, or name another folder"
    raise RunFolderError(f"run_dir={run_dir} already holds a run; {remedy}")


def holds_a_run(run_dir: Path) -> bool:
    """Whether sfrl has trained in it, or checkpoints lie there by which it goes on.

    Raises:
        RunFolderError: it cannot be looked into.
    """
    if has_records(run_dir):
        return True
    checkpoints = run_dir / "checkpoints"
    with _looked_into(run_dir):
        if not checkpoints.is_dir():
            return False
    return any(_OWN_LATEST.fullmatch(entry.name) for entry in _entries(checkpoints))


def has_records(run_dir: Path) -> bool:
    """Whether sfrl's records of a run are there, by what is in the files: others use such names.

    Raises:
        RunFolderError: it cannot be looked into.
    """
    unread = None
    for name, is_marked in _MARKS.items():
        path = run_dir / name
        try:
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    if is_marked(file.read(_MOST_MARKED)):
                        return True
        except OSError as error:
            unread = error
    with _looked_into(run_dir):
        if unread is not None:
            raise unread
    return False


def _has_ended_untrained(log: Path) -> bool:
    if not log.exists():
        return False
    with problems_told(log.parent), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_LINE))
        return file.read().endswith(f" {UNTRAINED}\n".encode())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in the folder, by name; nothing if there is none."""
    with _looked_into(folder), suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


@contextmanager
def _looked_into(folder: Path) -> Iterator[None]:
    """Raises RunFolderError for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be looked into: {error.strerror}; name a folder of your own"
        ) from error


def _is_of_a_run(name: str) -> bool:
    name = name.removesuffix(".tmp")
    return name in (*_FILES, "checkpoints") or name.startswith("events.out.tfevents.")


def write_whole(path: Path, content: bytes) -> None:
    """All of it or, where there is no room, nothing. Raises OSError, which names the file.

    One that is there gives way to another of its mode. What a link leads to is written, and a pipe
    or a device is written into.
    """
    path = path.resolve()
    temporary = path.with_name(f"sfrl-{os.getpid()}.tmp")  # a longer name may be too long
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        with open_new(temporary) as file:
            file.write(content)
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def open_new(path: Path) -> BinaryIO:
    """An empty file of this name. What was there goes; if it was a link, its target stays."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the umask
    return os.fdopen(descriptor, "wb")


def open_to_append(path: Path) -> BinaryIO:
    """The file, made if missing, unbuffered, to read and to write at its end.

    A file that has other names as well (a hard link of a backup's, or a stranger's) is replaced by
    a copy, so that what they name stays as it is.

    Raises:
        OSError: it is a link, a pipe or a device, which is neither followed nor waited for; or it
            cannot be written.
    """
    file = _open_to_append(path)
    if os.fstat(file.fileno()).st_nlink > 1:
        with file:
            _put_copy(file, path)
        file = _open_to_append(path)
    return file


def _open_to_append(path: Path) -> BinaryIO:
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
        _put_copy(file, path)
    new = open_to_append(path)
    file.close()
    return new


def _put_copy(file: BinaryIO, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open_new(temporary) as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the path still names what was opened, rather than nothing or another one."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
