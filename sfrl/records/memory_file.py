"""The contents of a memory (`Replay`), beside the run's last checkpoint: `checkpoints/memory.npz`.

NumPy's own format, without pickle. It is written as it is, and read block by block: it may be as
large as the memory itself, for which there is room once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfrl.records.checkpoint import DAMAGE, in_one_line
from sfrl.records.run_folder import open_new

_STAMP = "learner_steps"  # of the checkpoint that it belongs to
_DECISIONS = "env_steps"  # likewise; there may be a later checkpoint of the same optimizer step
_BLOCK_BYTES = 64 << 20


class MemoryFileError(Exception):
    """It is damaged, or of another checkpoint; the message says which."""


def path_in(run_dir: Path | str) -> Path:
    return Path(run_dir) / "checkpoints" / "memory.npz"


class Saved(NamedTuple):
    env_steps: int | None
    """Decisions of the run when it was written; None: an older file does not tell."""
    arrays: Mapping[str, Iterable[NDArray[Any]]]
    """Name -> blocks of rows, in order."""


def save(
    run_dir: Path | str, arrays: Mapping[str, NDArray[Any]], learner_steps: int, env_steps: int
) -> None:
    """Write them whole, or leave what was there. Raises OSError: the disk is full, or not there."""
    path = path_in(run_dir)
    temporary = path.with_name(f"{path.name}.tmp")
    blocks = {_STAMP: np.array(learner_steps), _DECISIONS: np.array(env_steps)}
    for name, array in arrays.items():
        rows = max(1, _BLOCK_BYTES * len(array) // max(1, array.nbytes))
        for i, first in enumerate(range(0, max(1, len(array)), rows)):
            blocks[f"{name}/{i}"] = array[first : first + rows]
    try:
        with open_new(temporary) as file:
            np.savez(file, allow_pickle=False, **blocks)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


@contextmanager
def opened(
    run_dir: Path | str, learner_steps: int, told: Callable[[], None] = lambda: None
) -> Iterator[Saved | None]:
    """What was saved with the checkpoint of so many optimizer steps.

    Each block is read when it is asked for, and `told` is called then. None: there is no such file.

    Raises:
        MemoryFileError: there is one that cannot be used; also within the block, where it is read.
    """
    path = path_in(run_dir)
    if not path.is_file():
        yield None
        return
    with ExitStack() as stack:
        with _damage_told():
            file = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(np.load(file, allow_pickle=False))
            stamp = archive[_STAMP].item()
            decisions = archive[_DECISIONS].item() if _DECISIONS in archive else None
        if stamp != learner_steps:
            raise MemoryFileError(
                f"it is of optimizer step {stamp!r:.40}, the checkpoint of {learner_steps}"
            )
        entries: dict[str, list[str]] = {}
        for entry in archive.files:
            if entry in (_STAMP, _DECISIONS):
                continue
            name, _, number = entry.rpartition("/")
            is_whole = not (name and number.isdigit())  # as older files have them
            entries.setdefault(entry if is_whole else name, []).append(entry)
        arrays = {name: _Blocks(archive, parts, told) for name, parts in entries.items()}
        yield Saved(decisions, arrays)


@dataclass(frozen=True)
class _Blocks:
    archive: Mapping[str, NDArray[Any]]
    entries: Sequence[str]
    told: Callable[[], None]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for entry in self.entries:
            with _damage_told():
                block = self.archive[entry]
            self.told()
            yield block


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {in_one_line(error):.200}"
        raise MemoryFileError(f"it cannot be read ({reason})") from error
