from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfrl.settings.fields import Count, Settings, Share, at_most


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings(Settings):
    """The environment."""

    frameskip: Annotated[Count, at_most(1000)] = 4
    """Frames emulated per decision (Atari only)."""
    sticky_actions: Share = 0.0
    """Probability that a frame repeats the previous action (Atari only); 0.25 is ALE's v5."""
    episodic_life: bool = False
    """Let a lost life end the episode (Atari only). Scores are then those of single lives."""
    max_episode_frames: Count = 108_000
    """Truncate an episode after this many frames (Atari only). 108000 is 30 minutes of play."""
