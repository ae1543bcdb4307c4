from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sfrl.settings.fields import USUAL, NotNegative, Settings, at_least, at_most


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The run."""

    env: Annotated[str, USUAL] = "Pong"
    """An Atari game by name (Pong, Breakout, MsPacman, ...), a Gymnasium id (CartPole-v1), with its
    module where Gymnasium does not know it (my_module:MyEnv-v0), or a vector (envpool:Pong-v5)."""
    system: Annotated[str, USUAL]
    """Who does what in which process, and what is learned (--list-systems). Some settings are of
    one system alone."""
    preset: Literal["none", "classic"] = "none"
    """classic: what Atari's games had before muon, pooled_cnn and --episodic-life: adam, two
    epochs, nature_cnn, and episodes of all lives. Other flags are kept."""
    run_dir: Annotated[str, USUAL] = ""
    """The run's folder. Empty: runs/ENV-TIME; with --resume, the newest (of --env)."""
    resume: Annotated[bool, USUAL] = False
    """Continue the run in --run-dir, or the newest one (of --env, if given), as it was set."""
    config: str = ""
    """Begin a new run with the settings in this file, the config.json of another one; only its
    folder is not taken over. Flags go before them. The tuner changes them if --tune is given."""
    # At most so much, since torch takes it times a million.
    seed: Annotated[int, at_least(0), at_most(2**32 - 1), USUAL] = 1
    """Seeds environments, action sampling and the learner. Only --serial makes runs repeatable."""
    train_seconds: Annotated[NotNegative, at_most(1e9), USUAL] = 0.0
    """Stop after this many seconds of this start, start-up included. 0: no limit."""
    train_frames: Annotated[int, at_least(0), USUAL] = 40_000_000
    """Stop after this many emulated frames, resumed ones included; the linear learning-rate
    schedule ends here. 0: no limit (then the schedule must not be linear)."""
    serial: bool = False
    """Run all workers in one thread, in turn: slow, but the same seed gives the same weights."""

    @property
    def max_frames(self) -> float:
        return self.train_frames or float("inf")

    def problems(self) -> list[str]:
        problems = super().problems()
        if any(ord(character) < 32 for character in self.run_dir):
            problems.append(
                f"run_dir={self.run_dir!r} must have no control characters, such as ends of lines; "
                f"name another folder"
            )
        return problems
