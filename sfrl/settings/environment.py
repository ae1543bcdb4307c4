from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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
    action_bounds: Literal["clip", "tanh"] = "clip"
    """How numbers that the policy draws become those of a Box: -1 and 1 are its bounds, and what is
    beyond is clipped; or a tanh leads there. Without bounds they stay as drawn."""
    max_episode_frames: Count = 108_000
    """Truncate an episode after this many frames (Atari only). 108000 is 30 minutes of play."""
