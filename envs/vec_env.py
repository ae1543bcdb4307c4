"""What the rest of the system knows of an environment: the interface and its records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

EnvKind = Literal["atari", "image", "vector"]
LeafKind = Literal["image", "vector", "choice", "mask"]
Bounds = Literal["clip", "tanh"]
OnNan = Literal["skip", "stop"]
EnvState = dict[str, Any]  # arrays, numbers and containers of them, as checkpoints hold
Observations = dict[str, NDArray[Any]]  # the leaves by name, [N, *shape] each
Actions = NDArray[np.int64] | NDArray[np.float32]  # [N, *ActionSpec.shape]

OBS = "obs"  # the leaf of an observation that is one array; those of others begin with it
NO_BOUND = 1e10  # a bound of this size says nothing
ACTION_MASK = "action_mask"  # the leaf that says which choices are allowed


@dataclass(frozen=True)
class Leaf:
    """One array of an observation, as slots hold it and networks see it."""

    name: str  # "obs", or the way to it in a Dict or Tuple: "obs.arm.angles", "obs.0"
    kind: LeafKind
    shape: tuple[int, ...]  # image: [C, H, W]; vector: [D]; choice: [K]; mask: [choices in all]
    dtype: str  # image, vector: uint8 or float32; choice: int32; mask: bool
    scale: float = 1.0  # networks divide images and vectors by it; see `obs_scale`
    sizes: tuple[int, ...] = ()  # of a choice: how many values each of its K numbers has, from 0 on
    frames: int = 1  # that lie along the first axis, the oldest first; see `FrameStack`


@dataclass(frozen=True)
class ActionSpec:
    """What is decided at each step: K choices, one of so many each, and D numbers.

    An array has them in this order, [K + D]. A single choice and nothing else is an array [], as
    Discrete has it. Numbers are the policy's own: `bounds` says how they become the environment's.
    Choices are exact in float32, since there are at most 2^24 of each.
    """

    choices: tuple[int, ...] = ()  # of how many each
    low: tuple[float, ...] = ()  # bounds of the numbers as the environment has them;
    high: tuple[float, ...] = ()  # infinite where there are none

    @property
    def num_logits(self) -> int:
        """Of all choices together: the size of a mask."""
        return sum(self.choices)

    @property
    def num_numbers(self) -> int:
        return len(self.low)

    @property
    def num_bounds(self) -> tuple[int, ...]:
        """Of each number: 0 to 2. One of `NO_BOUND` or more in size says nothing."""
        pairs = zip(self.low, self.high, strict=True)
        return tuple(sum(abs(bound) < NO_BOUND for bound in pair) for pair in pairs)

    @property
    def is_single(self) -> bool:
        """Whether it is one choice alone."""
        return len(self.choices) == 1 and not self.low

    @property
    def in_words(self) -> str:
        """As a user knows the space: Gymnasium's names."""
        choices, numbers = len(self.choices), self.num_numbers
        if self.is_single:
            return "a Discrete"
        if not numbers:
            return f"{choices} choices (MultiDiscrete, MultiBinary, or a Dict or Tuple)"
        if not choices:
            return f"a Box of {numbers}"
        return f"a Dict or Tuple of a Box of {numbers} and {choices} choices"

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.is_single else (len(self.choices) + len(self.low),)

    @property
    def dtype(self) -> str:
        return "float32" if self.low else "int64"


class StepResult(NamedTuple):
    """One step of N environments. The caller owns the arrays, except for those of `obs`."""

    obs: Observations  # contiguous; the next `recv` or `reset` may overwrite them
    rewards: NDArray[np.float32]  # [N] as the environment gave them: unclipped, unscaled
    terminated: NDArray[np.bool_]  # [N] the episode ended here: no value beyond this step
    truncated: NDArray[np.bool_]  # [N] the episode was cut off here: bootstrap from `obs`
    over: NDArray[np.bool_] | None = None  # [N] the game is over; None: where the episode ended

    @property
    def ended(self) -> NDArray[np.bool_]:
        """[N] Whether an episode ended, as the learner has it; the next step is no decision."""
        return self.terminated | self.truncated

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[N] Whether a score is complete. That of a game that a lost life interrupts is not."""
        return self.ended if self.over is None else self.over


@dataclass(frozen=True)
class EnvSpec:
    """What a network and its buffers must know of an environment before it runs."""

    kind: EnvKind  # image: it has one among its leaves
    leaves: tuple[Leaf, ...]  # in a fixed order; a mask comes last
    actions: ActionSpec
    frameskip: int  # emulated frames per decision
    statistics: tuple[str, ...] = ()  # wrappers that normalize by what each copy has seen itself
    reading: str = field(default="", compare=False)  # what was assumed of observations, if it was

    @property
    def has_pixels(self) -> bool:
        """Whether there is an image of whole numbers: these lose nothing in low precision."""
        return any(leaf.kind == "image" and leaf.dtype == "uint8" for leaf in self.leaves)


class VecEnv(Protocol):
    """N copies of one environment that step together.

    `send` and `recv` alternate, after a first `reset`:

        obs = env.reset()
        while True:
            env.send(policy(obs))  # [N, *actions.shape]
            result = env.recv()
            obs = result.obs

    Autoreset is Gymnasium's NEXT_STEP. The step that ends an episode returns the final
    observation. The step after it ignores its action and only resets: its reward is 0, its
    observation the first of the next episode. That is no transition: nothing to learn from. Where
    a lost life ended the episode, its reward is one of the game, and counts for the score alone.
    """

    num_envs: int
    actions: ActionSpec
    frameskip: int  # emulated frames per decision; 1 if the environment has no such notion
    stepping: NDArray[np.int64]
    """[1], the environment that is made, steps or resets now, -1 if none. `Split` puts shared
    memory here, for the watchdog."""

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Those of an observation of a single environment."""

    def reset(self) -> Observations:
        """Start all environments from their seeds. Every call gives the same start states."""

    def send(self, actions: Actions) -> None:
        """Start one step. `actions` may be overwritten as soon as this returns.

        Raises:
            ValueError: a choice is none of those that there are, or a number is not finite.
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


VEC_ENV_METHODS = tuple(
    name for name, member in vars(VecEnv).items() if name[0] != "_" and callable(member)
)


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """One seed of 31 bits per environment; neighbouring `seed`s share none of them."""
    states = (np.random.SeedSequence([seed, i]).generate_state(1) for i in range(num_envs))
    return [int(state[0]) >> 1 for state in states]


def random_actions(spec: ActionSpec, obs: Observations, rng: np.random.Generator) -> Actions:
    """Some for each environment; choices among those that a mask in `obs` allows."""
    num_envs = len(next(iter(obs.values())))
    mask = obs.get(ACTION_MASK)
    if spec.is_single and mask is None:
        return rng.integers(spec.choices[0], size=num_envs)
    actions = np.empty((num_envs, len(spec.choices) + spec.num_numbers), np.float32)
    start = 0
    for k, size in enumerate(spec.choices):
        draws = rng.random((num_envs, size))
        if mask is not None:
            draws = np.where(mask[:, start : start + size], draws, -1.0)
        actions[:, k] = draws.argmax(axis=1)
        start += size
    actions[:, len(spec.choices) :] = rng.standard_normal((num_envs, spec.num_numbers))
    return actions.reshape(num_envs, *spec.shape).astype(spec.dtype)


def size_of(leaf: Leaf) -> int:
    """Numbers in it."""
    return math.prod(leaf.shape)
