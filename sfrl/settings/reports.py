from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfrl.settings.fields import Count, Seconds, Settings, between


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
    prometheus: Annotated[int, between(0, 65535)] = 0
    """Serve the newest record to Prometheus, at this port of 127.0.0.1. 0: no port is opened."""
