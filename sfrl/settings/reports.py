from __future__ import annotations

from dataclasses import dataclass

from sfrl.settings.fields import Count, Seconds, Settings


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Reports."""

    report_seconds: Seconds = 5.0
    """Interval of metrics.jsonl, TensorBoard and the panel."""
    checkpoint_seconds: Seconds = 120.0
    """Interval of checkpoints."""
    keep_checkpoints: Count = 3
    """Newest checkpoints that are kept, besides the best."""
    log_to: str = ""
    """Where else records go: wandb, trackio, module:Class, or several, separated by commas."""
