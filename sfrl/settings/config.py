"""Every setting of a run, in one frozen dataclass: what all algorithms have, group by group.

Each algorithm's class adds its own (actor_critic.py); algorithms.py knows them all. The defaults
are Atari's, but for episodic_life and those that other settings decide; defaults.py has them by
kind of environment and size of machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.environment import EnvironmentSettings, env_options
from sfrl.settings.experience import ExperienceSettings
from sfrl.settings.faults import FaultSettings
from sfrl.settings.fields import linear_size, nearest_multiple, settings_of, shown
from sfrl.settings.model import ModelSettings
from sfrl.settings.optimizer import OptimizerSettings
from sfrl.settings.reports import ReportSettings
from sfrl.settings.run import RunSettings
from sfrl.settings.workers import WorkerSettings
from sfrl.systems import SYSTEMS

MAX_INDEX = 1 << 20  # of a slot or a row: see index_queue.pack
_MAX_ROUNDS = 25  # of rows that are too old; in a run in order 1 to 4 pass


class RowField(NamedTuple):
    """What acting writes into a row of a slot for each environment, besides others, by a name."""

    dtype: str
    shape: tuple[int, ...] = ()


class ConfigError(ValueError):
    """Settings that cannot work. The text lists every problem: value, rule, remedy."""


# Bases stand in reverse, since a dataclass takes the fields of its last base first.
@dataclass(frozen=True, kw_only=True)
class Config(
    ReportSettings,
    FaultSettings,
    OptimizerSettings,
    ExperienceSettings,
    ModelSettings,
    WorkerSettings,
    EnvironmentSettings,
    RunSettings,
):
    """What every algorithm has. One with an algorithm is made of a class derived from it.

    That class is all that everyone but the networks must know of the algorithm, without torch; how
    it acts and what it learns from is in sfrl/algorithms/.
    """

    ALGORITHM: ClassVar[str]
    """Which systems have it."""
    STATISTICS: ClassVar[tuple[str, ...]] = ()
    """What the algorithm reports of an update, besides what the learner reports of any. Each name
    is explained in docs/metrics.md."""
    SHOWN: ClassVar[tuple[str, ...]] = ()
    """Those, at most four, that the panel in the terminal has."""
    HEADLINE: ClassVar[str] = "total_loss"
    """The one that a plain line has."""

    FIXED_ON_RESUME: ClassVar[tuple[str, ...]] = (
        *("system", "preset", "env", "frameskip", "action_bounds", "optimizer"),
        *("env_kwargs", "wrappers", "image_size", "frame_stack", "observe_last"),
        *("model", "normalize_obs", "rnn", "rnn_size", "rnn_layers"),
    )
    """What the saved weights, the optimizer's state and the frame counter depend on."""
    COSTS: ClassVar[tuple[str, ...]] = (
        *("env", "frameskip", "sticky_actions", "episodic_life", "max_episode_frames", "queue"),
        *("env_kwargs", "wrappers", "image_size", "frame_stack", "observe_last"),
        *("threads_per_worker", "action_bounds"),
        *("device", "policy_devices", "cuda_graphs", "precision"),
        *("model", "normalize_obs", "rnn", "rnn_size", "rnn_layers"),
        *("system", "optimizer", "rollout_length", "batch_size", "minibatches", "epochs"),
    )
    """What the costs that the tuner measures depend on besides the machine."""

    @property
    def target_period(self) -> int:
        """Optimizer steps after which a target network becomes a copy of the model; 0: there is
        none."""
        return 0

    @property
    def target_decay(self) -> float:
        """Of a target network that is a moving average of the model, in each optimizer step; 0: it
        is a copy."""
        return 0.0

    def exploration(self, env_frames: float) -> NDArray[np.float32] | None:
        """[splits, N], how strongly each environment explores: as the algorithm means it, with what
        probability an action is a random one, or how much its noise is that of the last action.
        None: it explores in other ways."""
        return None

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ConfigError("\n".join(problems))

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        """The values that learn in this environment, where those of the class, Atari's, do not.

        Args:
            given: what the user has set, on which they may depend. It has not been checked.
        """
        return {}

    @classmethod
    def acted(cls, spec: envs.EnvSpec) -> dict[str, RowField]:
        """Fields of a row that acting writes; `actions` is one of them."""
        return {"actions": RowField(spec.actions.dtype, spec.actions.shape)}

    def acting_state_size(self, spec: envs.EnvSpec) -> int:
        """Numbers of an environment that acting keeps from row to row: the memory's."""
        return self.state_size

    def head_size(self, num_features: int, actions: envs.ActionSpec) -> int:
        """Numbers in the network's heads: here a value for each choice."""
        return linear_size(num_features, actions.num_logits)

    def problems_in(self, spec: envs.EnvSpec) -> list[str]:
        """What does not fit this environment, each in a line: a setting that does nothing in it, or
        what the algorithm is not for."""
        neutral = self.without_unused(spec)
        problems = [
            f"{name}={shown(getattr(self, name))} {reason}; leave it out"
            for name, reason in self.unused_in(spec).items()
            if getattr(self, name) != getattr(neutral, name)
        ]
        if 0 < self.max_policy_lag < self.forced_lag and not self.resume:
            problems.append(
                f"max_policy_lag={self.max_policy_lag} must be at least "
                f"forced_lag={self.forced_lag}: hardly a row would be learned from; leave it out"
            )
        num_slots = self.num_slots // self.num_learners
        size = num_slots * self.envs_per_split * self.rollout_length
        if self._learns_by_rounds and self.batch_size != size:
            whose = "a process's" if self.has_bundles else "all"
            workers = "" if self.has_bundles else "num_workers * "
            problems.append(
                f"batch_size={self.batch_size} must be {size} with system={self.system}: a round "
                f"of {whose} environments ({workers}envs_per_worker * rollout_length); set "
                f"batch_size={size}"
            )
        return problems

    def unused_in(self, spec: envs.EnvSpec) -> dict[str, str]:
        """The settings that do nothing in this environment, beside the others, and why.

        They must have the class's default: a user who sets one is told.
        """
        unused: dict[str, str] = {}
        if self.optimizer == "sgd":
            unused["optimizer_eps"] = (
                "is for adam, muon and rmsprop, and optimizer=sgd has no denominator"
            )
        if self.has_actors:
            have_one = f"and those of system={self.system} have one"
            unused["worker_nice"] = f"is for workers without a network, {have_one}"
            unused["policy_batch_size"] = f"is for policies that serve several workers, {have_one}"
        if not self.has_bundles:
            of_shared = ("updates", "optimizer_statistics")
            unused |= dict.fromkeys(of_shared, "is for systems whose learners share their weights")
        elif self.optimizer != "rmsprop":
            unused["optimizer_statistics"] = f"is for optimizer=rmsprop, and it is {self.optimizer}"
        if not any(map(math.isfinite, spec.actions.low + spec.actions.high)):
            unused["action_bounds"] = (
                f"is for a Box of actions with bounds, and {self.env} has none"
            )
        if all(leaf.kind != "vector" for leaf in spec.leaves):
            unused["normalize_obs"] = f"is for vectors, and {self.env} shows none"
        if spec.kind == "vector" and self.image_size > 0:  # 0 changes no image anywhere
            unused["image_size"] = f"is for images, and {self.env} shows none"
        if spec.kind != "atari":
            of_atari = ("preset", "sticky_actions", "episodic_life", "max_episode_frames")
            unused |= dict.fromkeys(of_atari, f"is for Atari games, and {self.env} is none")
        return unused

    def without_unused(self, spec: envs.EnvSpec, given: Collection[str] = ()) -> Self:
        """The same run: settings that do nothing in it have their defaults.

        Earlier versions have saved such settings, and another setting can make one useless.

        Args:
            given: names that stay as they are. The user has set them, and is told.
        """
        settings, unused = settings_of(type(self)), self.unused_in(spec).keys() - {*given}
        return replace(self, **{name: settings[name].default for name in unused})

    def hyperparameters(self) -> dict[str, str | float]:
        """All settings but those that tell where this run is, is shown and came from: what it may
        be compared by."""
        own = ("run_dir", "resume", "config", "tuned", "prometheus", "web")
        return {name: value for name, value in asdict(self).items() if name not in own}

    @property
    def env_options(self) -> envs.EnvOptions:
        return env_options(vars(self))

    @property
    def has_actors(self) -> bool:
        """Whether each rollout worker shares its process with a policy worker of its own."""
        has_actors: bool = SYSTEMS[self.system].layout in ("actors", "bundles")
        return has_actors

    @property
    def has_bundles(self) -> bool:
        """Whether each process plays, acts and learns, on weights that all of them share."""
        has_bundles: bool = SYSTEMS[self.system].layout == "bundles"
        return has_bundles

    @property
    def _learns_by_rounds(self) -> bool:
        """Whether a training batch is a round of all environments, or of a process's own."""
        system = SYSTEMS.get(self.system)  # None: that is reported
        return system is not None and (system.is_synchronous or system.layout == "bundles")

    # --- derived sizes ---
    @property
    def num_policies(self) -> int:
        """Policy workers of the run."""
        return self.num_workers if self.has_actors else self.num_policy_workers

    @property
    def num_learners(self) -> int:
        """Learners of the run."""
        return self.num_workers if self.has_bundles else 1

    @property
    def num_slots(self) -> int:
        return self.splits * self.slots_per_split

    @property
    def slots_per_batch(self) -> int:
        """Slots in one training batch. A memory takes them in one by one."""
        if self.replay is not None:
            return 1
        return self.batch_size * self.minibatches // (self.rollout_length * self.envs_per_split)

    @property
    def updates_per_round(self) -> int:
        """Optimizer steps, at most, in which every environment fills one slot."""
        return -(-self.splits * self.epochs * self.minibatches // self.slots_per_batch)

    @property
    def lag_limit(self) -> int:
        """The policy lag of the oldest rows that are learned from."""
        usual = _MAX_ROUNDS * self.updates_per_round + self.forced_lag
        return self.max_policy_lag or usual

    # --- rules ---
    def problems(self) -> list[str]:
        of_system = self._system_problems()
        fixed = {problem.partition("=")[0] for problem in of_system}  # whose only remedy that is
        problems = [p for p in super().problems() if p.partition("=")[0] not in fixed]
        problems += [*of_system, *self._batch_problems()]
        if self.lr_schedule == "linear" and self.train_frames == 0:
            problems.append(
                "train_frames=0 sets no end, and lr_schedule=linear needs one, where the rate "
                "reaches 0; try lr_schedule=constant, or set train_frames"
            )
        return problems

    def _system_problems(self) -> list[str]:
        own = [name for name, system in SYSTEMS.items() if system.algorithm == self.ALGORITHM]
        if self.system not in own:
            return [f"system={self.system} must be one of {', '.join(own)}"]
        return [
            f"{name}={shown(getattr(self, name))} must be {fixed.told} with "
            f"system={self.system}: {fixed.why}; leave it out"
            for name, fixed in SYSTEMS[self.system].fixed.items()
            if getattr(self, name) != fixed.value
        ]

    def _batch_problems(self) -> list[str]:
        """How splits, slots, batches and minibatches divide. All remedies together work."""
        sizes = (self.num_workers, self.num_splits, self.envs_per_worker, self.slots_per_split)
        if min(*sizes, self.rollout_length, self.batch_size, self.minibatches) < 1:
            return []  # has been reported, and divides by nothing
        problems = []
        # As it will be when the remedy of `WorkerSettings` has been taken.
        envs_per_split = nearest_multiple(self.envs_per_worker, self.num_splits) // self.num_splits

        # Trajectories of a minibatch, batch_size / rollout_length, must be a whole number; those of
        # a training batch, which are that times minibatches, a multiple of envs_per_split.
        unit = self.rollout_length * envs_per_split // math.gcd(self.minibatches, envs_per_split)
        batch_size = nearest_multiple(self.batch_size, unit)
        is_fifo = self.replay is None
        if is_fifo and self.batch_size % unit and not self._learns_by_rounds:
            problems.append(
                f"batch_size={self.batch_size} must be a multiple of {unit}, so that a minibatch "
                f"holds whole trajectories (of rollout_length={self.rollout_length}) and a "
                f"training batch of {self.minibatches} minibatches whole slots (of "
                f"{envs_per_split} trajectories, envs_per_worker / num_splits); try "
                f"batch_size={batch_size}"
            )

        slots = (
            f"num_workers={self.num_workers} * num_splits={self.num_splits} * "
            f"slots_per_split={self.slots_per_split}: num_slots={self.num_slots}"
        )
        sizes_told = {
            f"rollout_length={self.rollout_length}": self.rollout_length,
            slots: self.num_slots,
        }
        for told, size in sizes_told.items():
            if size >= MAX_INDEX:
                problems.append(
                    f"{told} must be below {MAX_INDEX}, what a queue's message can hold; lower it"
                )

        # With fewer slots than a training batch takes, all of them end up full, at a learner that
        # waits for one more.
        slots_per_batch = batch_size * self.minibatches // (self.rollout_length * envs_per_split)
        system = SYSTEMS.get(self.system)  # None: that has been reported
        is_fixed = system is not None and "slots_per_split" in system.fixed  # see `problems_in`
        if is_fifo and not is_fixed and self.num_slots < slots_per_batch:
            problems.append(
                f"slots_per_split={self.slots_per_split} makes {self.num_slots} slots "
                f"(num_workers * num_splits * slots_per_split), and a training batch takes "
                f"{slots_per_batch} (batch_size * minibatches / decisions per slot): the learner "
                f"would wait for ever; try slots_per_split={-(-slots_per_batch // self.splits)}, "
                f"or lower batch_size"
            )
        return problems
