"""What a system is: one of the ways that the field has found to train with many processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Fixed(NamedTuple):
    """A setting without which the system would be another one."""

    value: Any
    why: str  # "two would ..."

    @property
    def told(self) -> str:
        """The value, as messages name it."""
        return "empty" if self.value == "" else str(self.value)


class System(NamedTuple):
    """The choices that make it up. `--system` names one; the settings of a run follow from it.

    It needs no torch: it names parts, and those who know the parts make them.
    """

    name: str
    purpose: str
    """What a user takes it for, in a line of --list-systems."""
    paper: str
    algorithm: str
    """What is learned, and how actions are chosen: sfrl/algorithms/, sfrl/settings/."""
    layout: Literal["separate", "actors", "central", "bundles"] = "separate"
    """Who shares a process. separate: nobody. actors: a rollout worker and a policy worker of its
    own, which serves nobody else. central: the learner and the policy workers. bundles: a rollout
    worker, and a policy worker and a learner of its own."""
    pull: Literal["batch", "unroll"] = "batch"
    """When acting takes the newest weights: before each batch, or only where a slot begins."""
    is_synchronous: bool = False
    """Whether slots go back only when the weights that were learned from them are published, and a
    training batch has all slots there are: then no row is acted on by an older policy."""
    is_tuned: bool = False
    """Whether sfrl/tune/throughput.py is a model of its processes."""
    defaults: Mapping[str, Any] = {}
    """Settings where the system needs others than its algorithm's defaults; flags override them."""
    fixed: Mapping[str, Fixed] = {}
    """Settings that flags may not change."""
