"""Many episodes for their scores alone, side by side: one forward pass acts in all of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sfrl import envs
from sfrl.show.player import Player

_RESAMPLES = 2000
_DRAWS = (Tensor.exponential_, Tensor.normal_, Tensor.uniform_)


class Outcome(NamedTuple):
    """Of a whole episode."""

    score: float  # its return, unclipped
    steps: int  # decisions


@dataclass
class _Game:
    """An episode that goes on."""

    index: int
    env: envs.VecEnv  # of one environment
    generator: torch.Generator
    obs: envs.Observations  # leaf -> [1, *shape]
    memory: Tensor | None = None  # [1, H]
    score: float = 0.0
    steps: int = 0
    has_ended: bool = False


def evaluate(
    player: Player, num_episodes: int, num_envs: int, max_steps: int = 0
) -> Generator[list[Outcome]]:
    """Play the episodes 0, 1, ... of `player`, which are those of `Player.episode`.

    Each has an environment and random numbers of its own, so that it is the same however many are
    played at once, but for float32's rounding, which may depend on the size of a batch. All of them
    are played to their end, and told in the order of their indices, whichever ends first. So short
    ones do not count more than long ones, even if the caller stops early.

    Args:
        num_envs: environments at once, at most.
        max_steps: decisions after which an episode is cut off; 0: never.

    Yields:
        After each step of all environments, the outcomes that are next in order; mostly none.
    """
    games: list[_Game] = []
    ended: dict[int, Outcome] = {}
    num_begun = num_told = 0
    try:
        while num_told < num_episodes:
            while len(games) < num_envs and num_begun < num_episodes:
                env, generator = player.begin(num_begun)
                games.append(_Game(num_begun, env, generator, {}))
                games[-1].obs = env.reset()
                num_begun += 1
            _step(player, games, max_steps)
            for game in [game for game in games if game.has_ended]:
                games.remove(game)
                game.env.close()
                ended[game.index] = Outcome(game.score, game.steps)
            outcomes = []
            while num_told in ended:
                outcomes.append(ended.pop(num_told))
                num_told += 1
            yield outcomes
    finally:
        for game in games:
            game.env.close()


def _step(player: Player, games: Sequence[_Game], max_steps: int) -> None:
    """A decision in each game."""
    obs = {name: np.concatenate([game.obs[name] for game in games]) for name in games[0].obs}
    generators = [game.generator for game in games]
    with _OwnDraws(generators):
        actions, memory = player.policy.decide(
            obs,
            _stacked([game.memory for game in games]),
            deterministic=player.deterministic,
            generator=generators[0],
        )
    for row, game in enumerate(games):
        game.memory = None if memory is None else memory[row : row + 1]
        game.env.send(actions[row : row + 1])
    for game in games:
        result = game.env.recv()
        game.obs = result.obs
        game.score += float(result.rewards[0])
        game.steps += 1
        game.has_ended = bool(result.scored[0]) or game.steps == max_steps


def _stacked(states: Sequence[Tensor | None]) -> Tensor | None:
    """[B, H], with zeros for an episode that begins."""
    known = next((state for state in states if state is not None), None)
    if known is None:
        return None
    return torch.cat([torch.zeros_like(known) if state is None else state for state in states])


class _OwnDraws(TorchFunctionMode):
    """In the block each row of a tensor that is drawn comes from a generator of its own.

    An algorithm draws with one generator for all rows, and an episode would depend on the others.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._generators = generators

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _DRAWS:
            return func(*args, **kwargs)
        for row, own in zip(args[0], self._generators, strict=True):
            func(row, *args[1:], **kwargs | {"generator": own})
        return args[0]


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% confidence interval of the mean, by a bootstrap; None of less than two values."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)  # the same values have the same interval
    means = [rng.choice(values, len(values)).mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return low, high
