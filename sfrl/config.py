"""Every setting of a run, in one frozen dataclass. Its field docs are the command line's help.

The defaults here are those of Atari on two cores; defaults.py has them by kind of environment.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Loss = Literal["appo", "vtrace"]


class ConfigError(ValueError):
    """Settings that cannot work. The text lists every problem: value, rule, remedy."""


@dataclass(frozen=True, kw_only=True)
class Config:
    # --- the run ---
    env: str = "Pong"
    """An Atari game by name (Pong, Breakout, MsPacman, ...) or any Gymnasium id (CartPole-v1)."""
    run_dir: str = ""
    """The run's folder. Empty: runs/<env>-<timestamp>; with --resume, the newest of this env."""
    resume: bool = False
    """Continue the run in --run-dir, or the newest run of this env, with its saved settings."""
    seed: int = 1
    """Seeds environments, action sampling and the learner. Only --serial makes runs repeatable."""
    train_seconds: float = 0.0
    """Stop after this many seconds of this start, start-up included. 0: no limit."""
    train_frames: int = 40_000_000
    """Stop after this many emulated frames, resumed ones included; the linear learning-rate
    schedule ends here. 0: no limit (then the schedule must be constant)."""
    serial: bool = False
    """Run all workers in one thread, in turn: slow, but the same seed gives the same weights."""

    # --- the environment ---
    frameskip: int = 4
    """Frames emulated per decision (Atari only)."""
    sticky_actions: float = 0.0
    """Probability that a frame repeats the previous action (Atari only); 0.25 is ALE's v5."""
    episodic_life: bool = False
    """Let a lost life end the episode (Atari only). Scores are then those of single lives."""
    max_episode_frames: int = 108_000
    """Truncate an episode after this many frames (Atari only). 108000 is 30 minutes of play."""

    # --- who does the work ---
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run. auto: CUDA where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network's layers. auto: measured at start, the faster one is taken.
    Weights, optimizer, losses and V-trace are float32 in any case."""
    num_workers: int = 2
    """Rollout workers, one process each. They emulate: about one per core."""
    envs_per_worker: int = 16
    """Environments in one rollout worker, over all its splits."""
    num_splits: int = 2
    """Groups of environments in a worker: one group steps while another waits for its actions."""
    threads_per_worker: int = 1
    """Emulation threads of one split (Atari only)."""
    num_policy_workers: int = 1
    """Processes that run the policy. Each serves a fixed share of all splits."""
    policy_batch_size: int = 512
    """Most observations in one forward pass of a policy worker."""
    torch_threads: int = 1
    """Threads of the network's layers, in the learner and in each policy worker."""
    queue: Literal["auto", "lock-free", "faster-fifo"] = "auto"
    """Index queues. auto: lock-free, or faster-fifo where the extension could not be built."""
    pin_workers: bool = False
    """Bind rollout worker i to core i (modulo the cores this process may use)."""
    worker_nice: int = 0
    """Niceness of rollout workers: 1-19 lets the networks go first when cores are short."""
    debug_buffers: bool = False
    """Poison free slots and check ownership on every write to the trajectory buffer. Slow."""

    # --- the model ---
    model: str = "auto"
    """nature_cnn, impala_resnet, mlp, or your own encoder as module:Class.
    auto: nature_cnn for images of 36x36 and more, mlp otherwise."""
    rnn_size: int = 0
    """Width of a GRU between encoder and heads. 0: none."""

    # --- experience ---
    rollout_length: int = 32
    """Decisions per trajectory (T)."""
    slots_per_split: int = 2
    """Trajectory slots a split owns. More let it run ahead of the learner, at more policy lag."""
    batch_size: int = 256
    """Decisions per optimizer step; whole trajectories, so a multiple of --rollout-length."""
    minibatches: int = 4
    """Optimizer steps per epoch: one training batch is batch_size * minibatches decisions."""
    epochs: int = 2
    """Passes over each training batch."""
    max_policy_lag: int = 200
    """Rows whose policy is more optimizer steps behind than this are masked and counted."""

    # --- the loss ---
    loss: Loss = "appo"
    """appo: PPO's clipped ratio with V-trace advantages. vtrace: IMPALA's policy gradient."""
    gamma: float = 0.99
    """Discount per decision."""
    trace_lambda: float = 0.95
    """V-trace's lambda: 1 trusts the returns, lower values trust the critic."""
    rho_clip: float = 1.0
    """V-trace's rho-bar: which policy the values converge to."""
    c_clip: float = 1.0
    """V-trace's c-bar: how far corrections travel back. At most rho_clip."""
    ppo_clip: float = 0.2
    """Ratio beyond which --loss=appo stops pushing."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss, which is half the mean squared error."""
    normalize_advantages: bool = True
    """Advantages of a minibatch get mean 0 and deviation 1."""
    normalize_returns: bool = False
    """Learn values in units of the returns' running deviation (PopArt)."""
    reward_clip: Literal["sign", "none"] = "sign"
    """What the learner makes of rewards; logged scores are never clipped."""
    reward_scale: float = 1.0
    """Factor on rewards in the learner, after clipping."""

    # --- the optimizer ---
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """adam, or IMPALA's rmsprop."""
    optimizer_eps: float = 1e-5
    """Added to the denominator of the update. IMPALA's rmsprop uses 0.01."""
    learning_rate: float = 5e-4
    """At the start, or throughout if the schedule is constant."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: falls to 0 at --train-frames, counted in frames, so that a resumed run goes on."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    max_skipped_steps: int = 20
    """This many non-finite losses or gradients in a row end the run; single ones are skipped."""

    # --- reports ---
    report_seconds: float = 5.0
    """Interval of metrics.jsonl, TensorBoard and the panel."""
    checkpoint_seconds: float = 120.0
    """Interval of checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept, besides the best."""

    def __post_init__(self) -> None:
        problems = [*self._range_problems(), *self._combination_problems()]
        if problems:
            raise ConfigError("\n".join(problems))

    # --- derived sizes ---
    @property
    def envs_per_split(self) -> int:
        return self.envs_per_worker // self.num_splits

    @property
    def splits(self) -> int:
        """Splits of all workers; split i belongs to worker i // num_splits."""
        return self.num_workers * self.num_splits

    @property
    def num_slots(self) -> int:
        return self.splits * self.slots_per_split

    @property
    def slots_per_batch(self) -> int:
        """Slots in one training batch."""
        return self.batch_size * self.minibatches // (self.rollout_length * self.envs_per_split)

    @property
    def max_frames(self) -> float:
        return self.train_frames or float("inf")

    # --- rules ---
    def _range_problems(self) -> list[str]:
        at_least = {
            "seed": 0,
            "train_seconds": 0,
            "train_frames": 0,
            "frameskip": 1,
            "max_episode_frames": 1,
            "num_workers": 1,
            "envs_per_worker": 1,
            "num_splits": 1,
            "threads_per_worker": 1,
            "num_policy_workers": 1,
            "policy_batch_size": 1,
            "torch_threads": 1,
            "rnn_size": 0,
            "rollout_length": 1,
            "slots_per_split": 1,
            "batch_size": 1,
            "minibatches": 1,
            "epochs": 1,
            "max_policy_lag": 0,
            "rho_clip": 0,
            "c_clip": 0,
            "entropy_coef": 0,
            "value_coef": 0,
            "max_skipped_steps": 1,
            "keep_checkpoints": 1,
        }
        above_zero = (
            "ppo_clip",
            "reward_scale",
            "optimizer_eps",
            "learning_rate",
            "max_grad_norm",
            "report_seconds",
            "checkpoint_seconds",
        )
        unit_interval = ("gamma", "trace_lambda", "sticky_actions")
        problems = []
        for name, low in at_least.items():
            if not getattr(self, name) >= low:  # `not >=` also catches NaN
                problems.append(f"{name}={getattr(self, name)} must be at least {low}")
        for name in above_zero:
            if not getattr(self, name) > 0:
                problems.append(f"{name}={getattr(self, name)} must be above 0")
        for name in unit_interval:
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if not 0 <= self.worker_nice <= 19:
            problems.append(f"worker_nice={self.worker_nice} must lie between 0 and 19")
        return problems

    def _combination_problems(self) -> list[str]:
        problems = []
        if self.num_splits > 0 and self.envs_per_worker % self.num_splits:
            problems.append(
                f"envs_per_worker={self.envs_per_worker} must be a multiple of num_splits="
                f"{self.num_splits}, since all splits are equal; try "
                f"{self.num_splits * max(1, round(self.envs_per_worker / self.num_splits))}"
            )
        if self.rollout_length > 0 and self.batch_size % self.rollout_length:
            problems.append(
                f"batch_size={self.batch_size} must be a multiple of rollout_length="
                f"{self.rollout_length}, since minibatches hold whole trajectories; try "
                f"{self.rollout_length * max(1, round(self.batch_size / self.rollout_length))}"
            )
        if problems or min(self.num_splits, self.rollout_length, self.envs_per_split) < 1:
            return [*problems, *self._schedule_problems()]
        decisions_per_slot = self.rollout_length * self.envs_per_split
        decisions_per_batch = self.batch_size * self.minibatches
        if decisions_per_batch % decisions_per_slot:
            problems.append(
                f"batch_size * minibatches = {decisions_per_batch} must be a multiple of "
                f"rollout_length * envs_per_worker / num_splits = {decisions_per_slot}, since a "
                f"training batch is made of whole slots; try minibatches="
                f"{max(1, round(decisions_per_batch / decisions_per_slot)) * decisions_per_slot}"
                f" / batch_size"
            )
        elif self.num_slots < self.slots_per_batch:
            problems.append(
                f"num_workers * num_splits * slots_per_split = {self.num_slots} slots are below "
                f"the {self.slots_per_batch} of one training batch: the learner would wait for "
                f"ever; "
                f"raise slots_per_split to {-(-self.slots_per_batch // self.splits)} or lower "
                f"minibatches"
            )
        return [*problems, *self._schedule_problems()]

    def _schedule_problems(self) -> list[str]:
        problems = []
        if self.c_clip > self.rho_clip:
            problems.append(
                f"c_clip={self.c_clip} must not exceed rho_clip={self.rho_clip} "
                f"(IMPALA, section 4.1); lower c_clip"
            )
        if self.lr_schedule == "linear" and self.train_frames == 0:
            problems.append(
                "lr_schedule=linear needs train_frames above 0, where the rate reaches 0; "
                "set train_frames, or lr_schedule=constant"
            )
        if self.num_policy_workers > self.splits >= 1:
            problems.append(
                f"num_policy_workers={self.num_policy_workers} exceeds the {self.splits} splits "
                f"(num_workers * num_splits) they would share; lower it to {self.splits}"
            )
        if self.policy_batch_size < self.envs_per_worker // max(self.num_splits, 1):
            problems.append(
                f"policy_batch_size={self.policy_batch_size} is below the "
                f"{self.envs_per_worker // self.num_splits} environments of one split, which are "
                f"served whole; raise it"
            )
        return problems

    # --- on disk ---
    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Raises ConfigError if the file is no config: what is wrong with which field."""
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a config: {error}") from error
        return cls.from_dict(values, str(path))

    @classmethod
    def from_dict(cls, values: object, origin: str) -> Config:
        """Settings as `dataclasses.asdict` gave them. Raises ConfigError, naming `origin`."""
        if not isinstance(values, dict):
            raise ConfigError(f"{origin} must hold an object of settings, not {values!r:.40}")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        problems = [f"{origin}: unknown setting {name!r}" for name in values.keys() - defaults]
        for name in values.keys() & defaults.keys():
            expected = type(defaults[name])
            accepted = (int, float) if expected is float else expected
            value = values[name]
            if not isinstance(value, accepted) or isinstance(value, bool) != (expected is bool):
                problems.append(f"{origin}: {name}={value!r} must be of type {expected.__name__}")
        if problems:
            raise ConfigError("\n".join(sorted(problems)))
        return cls(**values)
