"""What an environment is seen to do while it plays at random, in a process of its own.

It may hang, crash or call exit meanwhile; what was seen before counts. play.py is that process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sfrl.run.apart import EndedError, apart
from sfrl.run.watchdog import START_LIMIT_S
from sfrl.settings.config import Config

Rule = Literal["returns", "types", "finite", "bounds", "seeds", "gymnasium"]

RULES: dict[Rule, str] = {
    "returns": "resets and steps return, and raise nothing",
    "types": "observations, rewards and ends are what the spaces and Gymnasium say",
    "finite": "no NaN, no infinity",
    "bounds": "observations lie within their space",
    "seeds": "the same seed and actions give the same episode",
    "gymnasium": "Gymnasium's own checker finds nothing",
}


class Problem(NamedTuple):
    """A rule that the environment breaks."""

    rule: Rule
    text: str
    is_fatal: bool  # no training is possible with it


@dataclass
class Look:
    """What was seen. It grows while the environment plays."""

    observation_space: str | None = None
    """As the environment declares it; None: it has no space of Gymnasium's, as Atari games."""
    action_space: str | None = None
    max_episode_steps: int | None = None
    """Decisions after which Gymnasium cuts an episode off, as it is registered."""
    checked: list[Rule] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    decisions: int = 0
    seconds: float = 0.0
    """Of play, in one process."""
    idle: float = 0.0
    """The share of that time in which it waited for something else than a core."""
    reset_seconds: float = 0.0
    resets: int = 0
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    terminated: int = 0
    truncated: int = 0
    rewarded: int = 0
    """Decisions whose reward is not 0."""
    reward_low: float = math.inf
    reward_high: float = -math.inf
    largest: dict[str, float] = field(default_factory=dict)
    """The largest number seen in each vector, in size."""
    info: list[str] = field(default_factory=list)
    """Names of the numbers that come in `info` at episodes' ends."""
    printed_bytes: int = 0

    def has_broken(self, rule: Rule, text: str, *, is_fatal: bool = False) -> None:
        """Note it; of several times the last one, which may say how many there were."""
        self.problems = [problem for problem in self.problems if problem.rule != rule]
        self.problems.append(Problem(rule, text, is_fatal))

    @property
    def is_fatal(self) -> bool:
        return any(problem.is_fatal for problem in self.problems)


def look(config: Config, seconds: float, limit_s: float, signals: Sequence[int] = ()) -> Look:
    """Let the environment play at random.

    Args:
        seconds: from the moment when it is made.
        limit_s: for one step or reset; after it the environment counts as hanging.
        signals: it is given up once there is one in it.

    Raises:
        MemoryError: the process could not be started.
        Stopped: there is a signal.
    """
    whole_games = dataclasses.replace(config.env_options, episodic_life=False)
    options = dataclasses.asdict(whole_games)
    given = (config.env, options, config.seed, seconds)
    seen, doing = Look(), "when it was made"
    with apart("sfrl.trial.play:tell", "trial", f"plays {config.env}", *given) as child:
        wait_s = max(START_LIMIT_S, limit_s)  # for imports
        try:
            while doing:
                doing, seen = child.receive(wait_s, signals)
                wait_s = limit_s
        except EndedError as error:
            seen.has_broken("returns", f"its process {error}, {doing}", is_fatal=True)
        except TimeoutError:
            text = f"it did not return within {wait_s:g} s, {doing}"
            seen.has_broken("returns", text, is_fatal=True)
        seen.printed_bytes = child.printed_bytes
    return seen
