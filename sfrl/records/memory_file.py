"""The contents of a memory (`Replay`), beside the run's last checkpoint: `checkpoints/memory.npz`.

NumPy's own format, without pickle: it is written as it is read, array by array, so that it may be
as large as the memory itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfrl.records.checkpoint import DAMAGE, in_one_line
from sfrl.records.run_folder import open_new

_STAMP = "learner_steps"  # of the checkpoint that it belongs to


class MemoryFileError(Exception):
    """It is damaged, or of another checkpoint; the message says which."""


def path_in(run_dir: Path | str) -> Path:
    return Path(run_dir) / "checkpoints" / "memory.npz"


def save(run_dir: Path | str, arrays: Mapping[str, NDArray[Any]], learner_steps: int) -> None:
    """Write them whole, or leave what was there. Raises OSError: the disk is full, or not there."""
    path = path_in(run_dir)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open_new(temporary) as file:
            np.savez(file, allow_pickle=False, **arrays, **{_STAMP: np.array(learner_steps)})
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def load(run_dir: Path | str, learner_steps: int) -> dict[str, NDArray[Any]] | None:
    """What was saved with the checkpoint of so many steps; None: there is no such file.

    Raises:
        MemoryFileError: there is one that cannot be used.
    """
    path = path_in(run_dir)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            stamp = archive[_STAMP].item()
            if stamp != learner_steps:
                raise MemoryFileError(
                    f"it is of optimizer step {stamp!r:.40}, the checkpoint of {learner_steps}"
                )
            return {name: archive[name] for name in archive.files if name != _STAMP}
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {in_one_line(error):.200}"
        raise MemoryFileError(f"it cannot be read ({reason})") from error
