"""The interface of a logger."""

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


class Logger:
    """Gets what a run records. Derive from it, and define what you need.

    A class of your own is made without arguments. All methods are called in the trainer's thread,
    which waits for them, and what they raise ends the run: one that talks to a network derives from
    `background.BackgroundLogger`, whose methods are called in a thread of its own.
    """

    def begin(self, run: RunStart) -> None:
        """Called once, when the workers have been started."""

    def report(self, record: Record) -> None:
        """Called for each record (docs/metrics.md), every `report_seconds`."""

    def end(self) -> None:
        """Called once if `begin` has been, after the last record, however the run has ended."""
