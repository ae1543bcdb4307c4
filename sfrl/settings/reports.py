from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfrl.settings.fields import Count, Duration, Seconds, Settings, between


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Reports."""

    report_seconds: Seconds = 5.0
    """Interval of metrics.jsonl, TensorBoard and the panel."""
    checkpoint_seconds: Seconds = 120.0
    """Interval of checkpoints."""
    keep_checkpoints: Count = 3
    """Newest checkpoints that are kept, besides the best."""
    video_every: Duration = 0.0
    """Film the agent once in this time, such as 10m, 90s or 2h: videos/ in the run's folder gets
    the latest and the best of up to 5 episodes. 0: never."""
    log_to: str = ""
    """Where else records go: wandb, trackio, module:Class, or several, separated by commas."""
    prometheus: Annotated[int, between(0, 65535)] = 0
    """Serve the newest record to Prometheus, at this port of 127.0.0.1. 0: no port is opened."""

    def problems(self) -> list[str]:
        problems = super().problems()
        if 0 < self.video_every < self.checkpoint_seconds:
            problems.append(
                f"video_every={self.video_every} must be at least checkpoint_seconds="
                f"{self.checkpoint_seconds}, since a checkpoint is what plays; raise it, or "
                f"lower checkpoint_seconds"
            )
        return problems
