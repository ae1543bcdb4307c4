"""What a run tells, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfrl.records.metrics import Record
from sfrl.records.start import Start


@dataclass(frozen=True)
class RunStart:
    """A run that starts, or goes on."""

    run_dir: Path
    env: str
    settings: Mapping[str, str | float]  # all but those of its folder
    starts: list[Start]  # of the run, this one last


class Callback:
    """Is told what happens in a run, and may end it. Derive from it, and define what you need.

    All methods are called in the trainer's thread, which waits for them. What they raise ends the
    run in order, with a checkpoint, and then reaches who has begun it. One that talks to a network
    derives from `background.BackgroundLogger`, whose methods are called in a thread of its own.

    `report`, `episode` and `checkpoint` end the run in order if they return True.
    """

    def begin(self, run: RunStart) -> None:
        """Called once, when the workers have been started."""

    def report(self, record: Record) -> bool | None:
        """Called for each record (docs/metrics.md), every `report_seconds`."""

    def episode(
        self, episode_return: float, length: int, info: Mapping[str, float], env_index: int
    ) -> bool | None:
        """Called for each episode that has ended.

        Args:
            episode_return: sum of the rewards as the environment gave them.
            length: in decisions.
            info: the numbers that the environment tells of it.
            env_index: the environment's number among all of the run, from 0 on.
        """

    def checkpoint(self, path: Path) -> bool | None:
        """Called for each that has been written, checkpoints/latest-*.pt."""

    def end(self) -> None:
        """Called once if `begin` has been, after the last record, however the run has ended."""
