"""A policy as one function in torch, from what an environment shows to what it is to do.

It does what `Policy.act` does with NumPy: envs/translation.py and `ActionLayout.own`, number by
number. What `Policy.act` keeps between two calls is one tensor here, which goes in and out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict, Discrete, Space
from torch import Tensor, nn

from sfrl.envs import ACTION_MASK
from sfrl.envs.areas import Taps
from sfrl.envs.masks import is_observed, observed_masks
from sfrl.envs.observe_last import LAST_ACTION, LAST_REWARD
from sfrl.envs.spaces import Part, Path, ranges_of, start_of
from sfrl.policy import Policy

REWARD, STATE, NEXT_STATE = "reward", "state", "next_state"
_BEGUN, _MEMORY = "begun", "memory"  # parts of the state; see also `_frames`


class Input(NamedTuple):
    """What a graph is given, a batch of it."""

    name: str
    shape: tuple[int, ...]  # of one
    dtype: str
    path: Path | None = None  # what leads to it in an observation; None: it is in none


class Graph(nn.Module):
    """The best action, or the likeliest one, of observations as an environment gives them.

    The state has what is remembered of an episode, [B, S] float32, zeros before it: 1 once it has
    begun, the older frames of each leaf, the network's memory, and the last action as networks see
    it; each only if the policy has it.

    Attributes:
        inputs: in the order of the observation; a mask, the reward and the state come last.
        state_size: S; 0 if nothing is remembered.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.algorithm, self.model = policy.algorithm, policy.model
        translation = policy.translation
        self.spec = policy.spec.actions
        self.stack, self.observes_last = policy.config.frame_stack, policy.config.observe_last
        parts = translation.spaces.parts
        self.readers = nn.ModuleList(_Reader(p, translation.taps.get(p.leaf.name)) for p in parts)
        self.masks = _masks(policy)
        self.state_sizes = self._state_sizes(policy)
        self.state_size = sum(self.state_sizes.values())
        self.inputs = [
            *(_of_space(p.leaf.name, p.space, p.path) for p in parts),
            *self.masks,
            *([Input(REWARD, (), "float32")] if self.observes_last else []),
            *([Input(STATE, (self.state_size,), "float32")] if self.state_size else []),
        ]
        self.own = _Own(policy)

    def _state_sizes(self, policy: Policy) -> dict[str, int]:
        sizes = {}
        if self.stack > 1 or self.observes_last:
            sizes[_BEGUN] = 1
        if self.stack > 1:
            stacked = {leaf.name: math.prod(leaf.shape) for leaf in policy.spec.leaves}
            for reader in self._readers():
                size = stacked[reader.leaf.name] // self.stack
                sizes[_frames(reader.leaf.name)] = (self.stack - 1) * size
        if policy.model.state_size:
            sizes[_MEMORY] = policy.model.state_size
        if self.observes_last:
            sizes[LAST_ACTION] = self.spec.num_logits + self.spec.num_numbers
        return sizes

    def example(self, size: int) -> dict[str, Tensor]:
        """A batch of inputs: zeros, and of choices the first value."""
        given = {
            name: torch.zeros(size, *shape, dtype=getattr(torch, dtype))
            for name, shape, dtype, _ in self.inputs
        }
        for reader in self._readers():
            if reader.start is not None:
                given[reader.leaf.name] += reader.start
        return given

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """From inputs by name to what `Algorithm.outputs` says, and `next_state` if there is one.

        `action` is as the environment has it: int64 [B] of a single choice, else [B, K + D].
        """
        before: dict[str, Tensor] = {}
        if self.state_size:
            parts = given[STATE].split([*self.state_sizes.values()], dim=1)
            before = dict(zip(self.state_sizes, parts, strict=True))
        obs, after = self._see(given, before)
        outputs, memory = self.algorithm.outputs(self.model, obs, before.get(_MEMORY))
        rows = outputs["action"]
        outputs = {**outputs, "action": self.own(rows)}
        if not self.state_size:
            return outputs
        if memory is not None:
            after[_MEMORY] = memory
        if self.observes_last:
            after[LAST_ACTION] = self._flat(rows)
        return {**outputs, NEXT_STATE: torch.cat([after[n] for n in self.state_sizes], dim=1)}

    def _see(
        self, given: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Leaves as networks take them, and what is to be remembered of them."""
        obs = {reader.leaf.name: reader(given[reader.leaf.name]) for reader in self._readers()}
        after: dict[str, Tensor] = {}
        if _BEGUN in before:
            has_begun = before[_BEGUN] > 0  # [B, 1]
            after[_BEGUN] = torch.ones_like(before[_BEGUN])
            if self.stack > 1:
                for name, newest in obs.items():
                    older = before[_frames(name)]
                    obs[name], after[_frames(name)] = self._stacked(newest, older, has_begun)
            if self.observes_last:
                reward = given[REWARD].unsqueeze(1)
                obs[LAST_ACTION] = before[LAST_ACTION]
                obs[LAST_REWARD] = torch.where(has_begun, reward, torch.zeros_like(reward))
        if self.masks:
            masks = [_rows(given[mask.name], math.prod(mask.shape)) for mask in self.masks]
            obs[ACTION_MASK] = torch.cat(masks, dim=1).to(torch.bool)
        return obs, after

    def _stacked(self, newest: Tensor, older: Tensor, has_begun: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf with the older frames before it, and what of them is older the next time.

        Exact in float32: pixels, and choices up to 2^20. See `layers.push`.
        """
        flat = newest.flatten(1).float()
        older = torch.where(has_begun, older, flat.repeat(1, self.stack - 1))
        frames = torch.cat([older, flat], dim=1)  # along the first axis of the leaf's shape
        size, *others = newest.shape[1:]
        stacked = frames.reshape(newest.shape[0], self.stack * size, *others)
        return stacked.to(newest.dtype), frames[:, flat.shape[1] :]

    def _flat(self, rows: Tensor) -> Tensor:
        """As networks see an action: see `observe_last.flat_actions`."""
        num_choices = len(self.spec.choices)
        columns = _rows(rows, num_choices + self.spec.num_numbers)
        flat = [
            columns[:, k : k + 1].long() == torch.arange(size)
            for k, size in enumerate(self.spec.choices)
        ]
        numbers = [columns[:, num_choices:]] if self.spec.low else []
        return torch.cat([*(choice.float() for choice in flat), *numbers], dim=1)

    def _readers(self) -> Iterator[_Reader]:
        for reader in self.readers:
            assert isinstance(reader, _Reader)
            yield reader


class _Reader(nn.Module):
    """From a part of an observation [B, *own shape] to its leaf [B, *shape], not stacked yet."""

    start: Tensor | None  # in the own shape

    def __init__(self, part: Part, taps: list[Taps] | None) -> None:
        super().__init__()
        self.leaf, self.order = part.leaf, part.order
        is_choice = part.leaf.kind == "choice"
        start = torch.from_numpy(start_of(part.space).copy()) if is_choice else None
        self.register_buffer("start", start)
        self.shrink = _Shrink(*taps) if taps else None

    def forward(self, own: Tensor) -> Tensor:
        if self.order:
            own = own.permute(0, *(1 + axis for axis in self.order))
        if self.start is not None:
            own = own.long() - self.start
        leaf = _rows(own, *self.leaf.shape).to(getattr(torch, self.leaf.dtype))
        if self.shrink is None:
            return leaf
        smaller: Tensor = self.shrink(leaf)
        return smaller


class _Shrink(nn.Module):
    """`areas.shrink` with the same float32 operations in the same order, so to the same bytes.

    Two products of matrices would be shorter, but add in an order of their own: where a mean lies
    halfway between two numbers they round it the other way at times (0.2% of an Atari screen).
    """

    row_indices: Tensor  # these and those below: [taps, size]
    row_weights: Tensor
    column_indices: Tensor
    column_weights: Tensor

    def __init__(self, rows: Taps, columns: Taps) -> None:
        super().__init__()
        for name, (indices, weights) in (("row", rows), ("column", columns)):
            self.register_buffer(f"{name}_indices", torch.from_numpy(indices).long())
            self.register_buffer(f"{name}_weights", torch.from_numpy(weights))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.row_indices, self.row_weights.unsqueeze(-1)
        lines = self._means(images.float(), -2, *rows)
        means = self._means(lines, -1, self.column_indices, self.column_weights)
        return means.round().to(torch.uint8) if images.dtype == torch.uint8 else means

    @staticmethod
    def _means(images: Tensor, axis: int, indices: Tensor, weights: Tensor) -> Tensor:
        taps = zip(indices.unbind(), weights.unbind(), strict=True)
        return functools.reduce(torch.add, (images.index_select(axis, i) * w for i, w in taps))


class _Own(nn.Module):
    """From rows of actions to numbers as the environment has them: see `ActionLayout.own`."""

    low: Tensor  # of the environment's numbers, [D]; here and below: see `Ranges`
    high: Tensor
    middle: Tensor
    reach: Tensor  # `Ranges.half`
    least: Tensor
    most: Tensor
    is_whole: Tensor  # [D] bool, the numbers of a Box of integers
    starts: Tensor  # [K], the lowest value of each choice

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        layout = policy.translation.layout
        self.spec = layout.spec
        self.is_discrete = isinstance(layout.space, Discrete)
        self.is_squashed = policy.config.action_bounds == "tanh"
        ranges = ranges_of(layout.spec)
        names = ("low", "high", "middle", "reach", "least", "most")
        for name, array in zip(names, (*ranges, *ranges.limits), strict=True):
            self.register_buffer(name, torch.from_numpy(array).float())
        starts = [
            start_of(leaf).reshape(-1) for _, leaf in layout.leaves if not isinstance(leaf, Box)
        ]
        self.register_buffer("starts", torch.from_numpy(np.concatenate([[], *starts])).long())
        whole = [
            np.full(math.prod(leaf.shape), not np.issubdtype(leaf.dtype, np.floating))
            for _, leaf in layout.leaves
            if isinstance(leaf, Box)
        ]
        self.register_buffer("is_whole", torch.from_numpy(np.concatenate([[], *whole]) > 0))

    def forward(self, rows: Tensor) -> Tensor:
        num_choices = len(self.spec.choices)
        if not self.spec.low:
            if self.is_discrete:
                return rows + self.starts[0]
            return (rows.unsqueeze(1) if self.spec.is_single else rows) + self.starts
        choices, raw = rows[:, :num_choices], rows[:, num_choices:]
        if self.is_squashed:
            softplus = F.softplus(raw)
            one_sided = torch.where(self.high.isfinite(), self.high - softplus, raw)
            one_sided = torch.where(self.low.isfinite(), self.low + softplus, one_sided)
            has_both = self.low.isfinite() & self.high.isfinite()
            numbers = torch.where(has_both, self.middle + self.reach * raw.tanh(), one_sided)
        else:
            numbers = self.middle + self.reach * torch.minimum(
                torch.maximum(raw, self.least), self.most
            )
        numbers = torch.where(self.is_whole, numbers.round(), numbers)
        numbers = torch.minimum(torch.maximum(numbers, self.low), self.high)
        return torch.cat([choices + self.starts, numbers], dim=1) if num_choices else numbers


def _masks(policy: Policy) -> list[Input]:
    """Where the environment has masks: the arrays of which one is made."""
    if policy.spec.leaves[-1].kind != "mask":
        return []
    spaces = policy.translation.spaces
    if not is_observed(spaces.observation):
        return [Input(ACTION_MASK, (policy.spec.actions.num_logits,), "bool")]
    assert isinstance(spaces.observation, Dict), "it has keys"
    masks = observed_masks(spaces.observation[ACTION_MASK], spaces.action)
    return [_of_space(".".join(map(str, path)), space, path) for path, space in masks]


def _of_space(name: str, space: Space[Any], path: Path) -> Input:
    assert space.dtype is not None, "it is a space of arrays"
    return Input(name, space.shape or (), space.dtype.name, path)


def _frames(leaf: str) -> str:
    return f"frames of {leaf}"


def _rows(x: Tensor, *shape: int) -> Tensor:
    """[B, ...] -> [B, *shape]."""
    return x.reshape(x.shape[0], *shape)
