from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from sfrl.settings.fields import Bare, Count, Duration, Seconds, Settings, between, shown


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
    web: Annotated[str, Bare("8501")] = ""
    """Show the run in the browser while it lasts, at this port of 127.0.0.1 (8501 if none is
    given), or at ADDRESS:PORT, where a token lets in. Empty: not."""

    @property
    def web_address(self) -> tuple[str, int]:
        """Where `web`, if it is not empty, wants to be shown."""
        address, _, port = self.web.rpartition(":")
        return address.strip("[]") or "127.0.0.1", int(port)

    def problems(self) -> list[str]:
        problems = super().problems()
        port = re.fullmatch(r"(?:[^\s/]+:)?([0-9]{1,5})", self.web)
        if self.web and (port is None or int(port[1]) > 65535):
            problems.append(
                f"web={shown(self.web)} must be a port from 0 to 65535, such as 8501, or an "
                f"address of this machine and a port, such as 0.0.0.0:8501"
            )
        if 0 < self.video_every < self.checkpoint_seconds:
            problems.append(
                f"video_every={self.video_every} must be at least checkpoint_seconds="
                f"{self.checkpoint_seconds}, since a checkpoint is what plays; raise it, or "
                f"lower checkpoint_seconds"
            )
        return problems
