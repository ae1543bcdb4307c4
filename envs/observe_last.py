"""The previous action and reward as part of what is observed, for networks with memory.

As in IMPALA and R2D2 (arXiv:1802.01561, Kapturowski et al. 2019): where the outcome of an action
tells something, such as in bandits, a network that does not see its action cannot learn from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.layers import Layer
from sfrl.envs.vec_env import (
    Actions,
    ActionSpec,
    EnvSpec,
    EnvState,
    Leaf,
    Observations,
    StepResult,
    VecEnv,
)

LAST_ACTION, LAST_REWARD = "last_action", "last_reward"


class ObserveLast(Layer):
    """A `VecEnv` whose observations have two more leaves, both 0 in an episode's first one.

    `last_action` has a 1 for each choice that was made, and the numbers; `last_reward` the reward
    as the environment gave it.
    """

    def __init__(self, env: VecEnv) -> None:
        super().__init__(env)
        self._last = self._nothing()

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return _with_last(self.env.leaves, self.actions)

    def _nothing(self) -> Observations:
        return nothing_yet(self.num_envs, self.actions)

    def reset(self) -> Observations:
        self._last = self._nothing()
        self._ended[:] = False
        return self.env.reset() | self._last

    def send(self, actions: Actions) -> None:
        self._last = self._nothing()
        self._last[LAST_ACTION][:] = flat_actions(self.actions, actions)
        self.env.send(actions)

    def recv(self) -> StepResult:
        result = self.env.recv()
        self._last[LAST_REWARD][:, 0] = result.rewards
        for last in self._last.values():
            last[self._ended] = 0.0  # these were no decisions
        self._ended = result.ended
        return result._replace(obs=result.obs | self._last)

    def state(self) -> EnvState | None:
        if (state := self.env.state()) is None:
            return None
        last = {name: array.copy() for name, array in self._last.items()}  # of a step begun
        return {"env": state, "last": last, "ended": self._ended.copy()}

    def load_state(self, state: EnvState) -> None:
        self.env.load_state(state["env"])
        self._last = {name: array.copy() for name, array in state["last"].items()}
        self._ended = state["ended"].copy()


def nothing_yet(num_envs: int, actions: ActionSpec) -> Observations:
    """The two leaves at episodes' starts."""
    return {
        LAST_ACTION: np.zeros((num_envs, _action_size(actions)), np.float32),
        LAST_REWARD: np.zeros((num_envs, 1), np.float32),
    }


def observing_last(spec: EnvSpec) -> EnvSpec:
    """What `ObserveLast` makes of an environment."""
    return dataclasses.replace(spec, leaves=_with_last(spec.leaves, spec.actions))


def _with_last(leaves: tuple[Leaf, ...], actions: ActionSpec) -> tuple[Leaf, ...]:
    own = (
        Leaf(LAST_ACTION, "vector", (_action_size(actions),), "float32"),
        Leaf(LAST_REWARD, "vector", (1,), "float32"),
    )
    masks = tuple(leaf for leaf in leaves if leaf.kind == "mask")
    return (*leaves[: len(leaves) - len(masks)], *own, *masks)


def _action_size(spec: ActionSpec) -> int:
    return spec.num_logits + spec.num_numbers


def flat_actions(spec: ActionSpec, actions: Actions) -> NDArray[np.float32]:
    """[N, choices in all + numbers]: a 1 for each choice that was made, then the numbers."""
    flat = np.zeros((len(actions), _action_size(spec)), np.float32)
    columns = actions.reshape(len(actions), -1)
    start = 0
    for k, size in enumerate(spec.choices):
        flat[np.arange(len(flat)), start + columns[:, k].astype(np.int64)] = 1.0
        start += size
    flat[:, start:] = columns[:, len(spec.choices) :]
    return flat
