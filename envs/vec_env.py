"""What the rest of the system knows of an environment: the interface and its two records."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

_MAX_SCALE = 65_536.0
ObsArray = NDArray[np.uint8 | np.float32]
EnvKind = Literal["atari", "image", "vector"]
OnNan = Literal["skip", "stop"]
EnvState = dict[str, Any]  # arrays, numbers and containers of them, as checkpoints hold


class StepResult(NamedTuple):
    """One step of N environments. The caller owns the arrays, except for `obs`."""

    obs: ObsArray  # [N, *obs_shape], contiguous; the next `recv` or `reset` may overwrite it
    rewards: NDArray[np.float32]  # [N] as the environment gave them: unclipped, unscaled
    terminated: NDArray[np.bool_]  # [N] the episode ended here: no value beyond this step
    truncated: NDArray[np.bool_]  # [N] the episode was cut off here: bootstrap from `obs`


@dataclass(frozen=True)
class EnvSpec:
    """What a network and its buffers must know of an environment before it runs."""

    kind: EnvKind
    obs_shape: tuple[int, ...]  # atari, image: [C, H, W]; vector: [D]
    obs_dtype: str  # "uint8" for atari; uint8 or float32 for image; "float32" for vector
    num_actions: int
    frameskip: int  # emulated frames per decision
    obs_scale: float = 1.0  # networks divide observations by it; see `obs_scale`
    statistics: tuple[str, ...] = ()  # wrappers that normalize by what each copy has seen itself
    reading: str = field(default="", compare=False)  # what was assumed of observations, if it was


class VecEnv(Protocol):
    """N copies of one environment that step together.

    `send` and `recv` alternate, after a first `reset`:

        obs = env.reset()
        while True:
            env.send(policy(obs))  # [N] int64
            obs, rewards, terminated, truncated = env.recv()

    Autoreset is Gymnasium's NEXT_STEP. The step that ends an episode returns the final
    observation. The step after it ignores its action and only resets: its reward is 0, its
    observation the first of the next episode. That is no transition: nothing to learn from.
    """

    num_envs: int
    observation_space: Box  # of a single environment
    action_space: Discrete  # of a single environment; starts at 0
    frameskip: int  # emulated frames per decision; 1 if the environment has no such notion
    stepping: NDArray[np.int64]
    """[1], the environment that is made, steps or resets now, -1 if none. `Split` puts shared
    memory here, for the watchdog."""

    def reset(self) -> ObsArray:
        """Start all environments from their seeds. Every call gives the same start states."""

    def send(self, actions: NDArray[np.int64]) -> None:
        """Start one step. `actions` may be overwritten as soon as this returns.

        Raises:
            ValueError: an action is outside `action_space`.
        """

    def recv(self) -> StepResult:
        """Wait for the step that `send` started."""

    def episode_info(self, env: int) -> dict[str, float]:
        """The numbers in the `info` that came with the end of its episode; for right after it."""

    def state(self) -> EnvState | None:
        """All that decides what comes next, between any two calls; None if it cannot be had."""

    def load_state(self, state: EnvState) -> None:
        """Restore a state returned by `state()`; call it instead of `reset()`."""

    def render(self) -> NDArray[np.uint8]:
        """The picture a human would see now, [H, W, 3]. Needs `render=True` when made.

        Raises:
            EnvError: the environment gives none.
        """

    def close(self) -> None:
        """Free emulators, threads and windows. Closing twice is allowed."""


def obs_scale(space: Box) -> float:
    """The largest size of a number that the space allows, or 1 where it sets no bounds.

    Divided by it, pixels of 0..255 and planes of 0..1 both reach up to 1. Bounds beyond those of 16
    bits are the largest numbers of a type rather than of the observations: they say nothing.
    """
    scale = max(abs(float(space.low.min())), abs(float(space.high.max())))
    return scale if 0 < scale <= _MAX_SCALE else 1.0


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """One seed of 31 bits per environment; neighbouring `seed`s share none of them."""
    states = (np.random.SeedSequence([seed, i]).generate_state(1) for i in range(num_envs))
    return [int(state[0]) >> 1 for state in states]
