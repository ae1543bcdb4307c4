"""Every setting of a run, in one frozen dataclass. Its field docs are the command line's help.

The defaults here are Atari's; defaults.py has them by kind of environment and size of machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from sfrl.envs.logs import printable

Loss = Literal["appo", "vtrace"]
MAX_CONFIG_BYTES = 1 << 20  # of a config.json
_MAX_CHARACTERS = 4096  # of a setting, in a file that may be a stranger's: the longest path
_MAX_NAME = 80  # of what may be a misspelled setting
_DEVICE = r"(cpu|cuda(:[0-9]{1,2})?)"
MAX_INDEX = 1 << 20  # of a slot or a row: see index_queue.pack
_MAX_COUNT = 2**53  # of an int, which is to stay exact as a float
_MAX_SECONDS = 1e9  # 30 years
_FLOAT32 = (2.0**-126, 3.4e38)  # what becomes neither 0 nor infinity there


class ConfigError(ValueError):
    """Settings that cannot work. The text lists every problem: value, rule, remedy."""


@dataclass(frozen=True, kw_only=True)
class Config:
    # --- the run ---
    env: str = "Pong"
    """An Atari game by name (Pong, Breakout, MsPacman, ...) or a Gymnasium id (CartPole-v1) with
    Box observations and Discrete actions."""
    run_dir: str = ""
    """The run's folder. Empty: runs/<env>-<timestamp>; with --resume, the newest (of --env)."""
    resume: bool = False
    """Continue the run in --run-dir, or the newest one (of --env, if given), as it was set."""
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
    tune: Literal["off", "cached", "now"] = "cached"
    """Fit workers, environments, splits and precision to this machine by a measurement of some
    seconds, whose result is kept; flags are respected. now: measure anew. off: as the defaults say.
    No effect with --serial and --resume."""
    tuned: str = ""
    """What the tuner decided and why: its note, which config.json keeps."""
    device: str = "auto"
    """Where the learner runs: auto, cpu, cuda or cuda:N. auto: CUDA where there is one."""
    policy_devices: str = ""
    """Where policy workers run, in turn, e.g. cuda:0,cuda:1. Empty: where the learner does."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """auto: an inference or a minibatch is one CUDA graph, where it can be captured as one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder. auto: the faster one, measured at start (--serial: float32).
    Weights, optimizer, losses and V-trace are float32 in any case."""
    num_workers: int = 2
    """Rollout workers, one process each. They emulate: about one per core."""
    envs_per_worker: int = 16
    """Environments in one rollout worker, over all its splits."""
    num_splits: int = 2
    """Groups of environments in a worker: one group steps while another waits for its actions."""
    threads_per_worker: int = 1
    """More than one changes nothing but a warning: ALE steps a game with Python's lock held, so
    that cores are used by processes (num_workers)."""
    num_policy_workers: int = 1
    """Processes that run the policy. Each serves a fixed share of all splits."""
    policy_batch_size: int = 512
    """Most observations in one forward pass of a policy worker."""
    torch_threads: int = 1
    """Threads of the learner's network. Policy workers have one each, and there may be several."""
    queue: Literal["auto", "lock-free", "faster-fifo"] = "auto"
    """Index queues. auto: lock-free, or faster-fifo where the extension could not be built."""
    pin_workers: bool = False
    """Bind rollout worker i to core i (modulo the cores this process may use)."""
    worker_nice: int = 5
    """Niceness of rollout workers: above 0 the networks go first where cores are short."""
    debug_buffers: bool = False
    """Poison free slots and check ownership on every write to the trajectory buffer. Slow."""

    algorithm: Literal["actor_critic"] = "actor_critic"
    """What is learned, and how it acts."""

    # --- the model ---
    model: str = "auto"
    """a3c_cnn, nature_cnn, impala_resnet, mlp, or your own encoder as module:Class.
    auto: nature_cnn for images of 36x36 and more, mlp otherwise."""
    value_encoder: Literal["shared", "separate"] = "shared"
    """separate: policy and value have an encoder each (and a GRU each, with --rnn-size). Vectors
    have it by default, where it costs little and learns more surely."""
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
    ppo_clip: float = 0.1
    """Ratio beyond which --loss=appo stops pushing."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss, which is half the mean squared error."""
    normalize_advantages: bool = True
    """Advantages of a minibatch get mean 0 and deviation 1."""
    normalize_returns: bool = False
    """Learn values in units of the returns' running size, their root mean square."""
    reward_clip: Literal["sign", "none"] = "sign"
    """What the learner makes of rewards; logged scores are never clipped."""
    reward_scale: float = 1.0
    """Factor on rewards in the learner, after clipping."""

    # --- the optimizer ---
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """adam, or IMPALA's rmsprop."""
    optimizer_eps: float = 1e-5
    """Added to the denominator of the update. IMPALA's rmsprop uses 0.01."""
    learning_rate: float = 1e-3
    """At the start, or throughout if the schedule is constant."""
    value_lr_factor: float = 3.0
    """Learning rate of a separate value network (--value-encoder), in multiples of the policy's."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: falls to 0 at --train-frames, counted in frames, so that a resumed run goes on."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    max_skipped_steps: int = 20
    """This many non-finite losses or gradients in a row end the run; single ones are skipped."""

    # --- faults ---
    max_worker_restarts: int = 10
    """A rollout worker that dies or hangs is started again, after a delay that grows if it fails
    again soon. After this many restarts of one worker within an hour the run ends."""
    env_timeout: float = 60.0
    """Seconds after which the start, a reset or a step of an environment is given up, and its
    worker started anew."""
    on_nan: Literal["skip", "stop"] = "skip"
    """NaN or infinity from an environment. skip: its episode is cut off before, with a warning.
    stop: the run ends. Neither ever reaches the learner."""
    stall_timeout: float = 10.0
    """Seconds without a minibatch or an inference done after which a learner or policy worker with
    work to do counts as hanging, and the run ends."""

    # --- reports ---
    report_seconds: float = 5.0
    """Interval of metrics.jsonl, TensorBoard and the panel."""
    checkpoint_seconds: float = 120.0
    """Interval of checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept, besides the best."""

    def __post_init__(self) -> None:
        problems = [*self._value_problems(), *self._batch_problems(), *self._other_problems()]
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
    def state_size(self) -> int:
        """Numbers in the recurrent state of an environment."""
        return self.rnn_size if self.value_encoder == "shared" else 2 * self.rnn_size

    @property
    def max_frames(self) -> float:
        return self.train_frames or float("inf")

    # --- rules ---
    def _value_problems(self) -> list[str]:
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
            "max_worker_restarts": 0,
        }
        at_most = {
            "seed": 2**32 - 1,  # torch takes it times a million
            "frameskip": 1000,
            "torch_threads": 1024,  # all are started
            "minibatches": 1000,  # the learner has a row of numbers for each, of each epoch
            "epochs": 1000,
            "train_seconds": _MAX_SECONDS,
            "report_seconds": _MAX_SECONDS,
            "checkpoint_seconds": _MAX_SECONDS,
            "env_timeout": _MAX_SECONDS,
            "stall_timeout": _MAX_SECONDS,
        }
        above_zero = (
            "ppo_clip",
            "reward_scale",
            "optimizer_eps",
            "learning_rate",
            "value_lr_factor",
            "max_grad_norm",
            "report_seconds",
            "checkpoint_seconds",
            "env_timeout",
            "stall_timeout",
        )
        between = {
            "gamma": (0, 1),
            "trace_lambda": (0, 1),
            "sticky_actions": (0, 1),
            "worker_nice": (0, 19),
        }
        problems = []
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{name}={value} must be a finite number")
            elif name in CHOICES and value not in CHOICES[name]:
                problems.append(f"{name}={value} must be one of {', '.join(CHOICES[name])}")
            elif name in at_least and value < at_least[name]:
                problems.append(f"{name}={value} must be at least {at_least[name]}")
            elif name in above_zero and value <= 0:
                problems.append(f"{name}={value} must be above 0")
            elif name in at_most and value > at_most[name]:
                problems.append(f"{name}={value} must be at most {at_most[name]:,.0f}")
            elif isinstance(value, int) and value > _MAX_COUNT:
                problems.append(f"{name}={value!s:.40} must be at most 2^53={_MAX_COUNT}")
            elif isinstance(value, float) and value and not _is_float32(value):
                low, high = _FLOAT32
                problems.append(f"{name}={value} must lie between {low:.3g} and {high:.3g} in size")
            elif name in between and not between[name][0] <= value <= between[name][1]:
                low, high = between[name]
                problems.append(f"{name}={value} must lie between {low} and {high}")
        return problems

    def _batch_problems(self) -> list[str]:
        """How splits, slots, batches and minibatches divide. All remedies together work."""
        sizes = (self.num_workers, self.num_splits, self.envs_per_worker, self.slots_per_split)
        if min(*sizes, self.rollout_length, self.batch_size, self.minibatches) < 1:
            return []  # has been reported, and divides by nothing
        problems = []
        envs_per_worker = _nearest_multiple(self.envs_per_worker, self.num_splits)
        if self.envs_per_worker % self.num_splits:
            problems.append(
                f"envs_per_worker={self.envs_per_worker} must be a multiple of num_splits="
                f"{self.num_splits}, since all splits are equal; try "
                f"envs_per_worker={envs_per_worker}"
            )
        envs_per_split = envs_per_worker // self.num_splits

        # Trajectories of a minibatch, batch_size / rollout_length, must be a whole number; those of
        # a training batch, which are that times minibatches, a multiple of envs_per_split.
        unit = self.rollout_length * envs_per_split // math.gcd(self.minibatches, envs_per_split)
        batch_size = _nearest_multiple(self.batch_size, unit)
        if self.batch_size % unit:
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
        if self.num_slots < slots_per_batch:
            problems.append(
                f"slots_per_split={self.slots_per_split} makes {self.num_slots} slots "
                f"(num_workers * num_splits * slots_per_split), and a training batch takes "
                f"{slots_per_batch} (batch_size * minibatches / decisions per slot): the learner "
                f"would wait for ever; try slots_per_split={-(-slots_per_batch // self.splits)}, "
                f"or lower batch_size"
            )
        if self.num_policy_workers > self.splits:
            problems.append(
                f"num_policy_workers={self.num_policy_workers} must not exceed the {self.splits} "
                f"splits (num_workers * num_splits) that they share; try "
                f"num_policy_workers={self.splits}"
            )
        if self.policy_batch_size < envs_per_split:
            problems.append(
                f"policy_batch_size={self.policy_batch_size} must be at least the {envs_per_split} "
                f"environments of a split (envs_per_worker / num_splits), which are served "
                f"together; try policy_batch_size={envs_per_split}"
            )
        return problems

    def _other_problems(self) -> list[str]:
        problems = []
        if any(ord(character) < 32 for character in self.run_dir):
            problems.append(
                f"run_dir={self.run_dir!r} must have no control characters, such as ends of lines; "
                f"name another folder"
            )
        if not re.fullmatch(f"auto|{_DEVICE}", self.device):
            problems.append(f"device={self.device!r} must be auto, cpu, cuda or cuda:N")
        if not re.fullmatch(f"({_DEVICE}(,{_DEVICE})*)?", self.policy_devices):
            problems.append(
                f"policy_devices={self.policy_devices!r} must be devices like cpu, cuda or cuda:1, "
                f"separated by commas"
            )
        if self.c_clip > self.rho_clip:
            problems.append(
                f"c_clip={self.c_clip} must not exceed rho_clip={self.rho_clip} "
                f"(IMPALA, section 4.1); try c_clip={self.rho_clip}"
            )
        if self.lr_schedule == "linear" and self.train_frames == 0:
            problems.append(
                "train_frames=0 sets no end, and lr_schedule=linear needs one, where the rate "
                "reaches 0; try lr_schedule=constant, or set train_frames"
            )
        return problems

    # --- on disk ---
    @classmethod
    def load(cls, path: Path) -> Config:
        """Raises ConfigError if the file is no config: what is wrong with which field."""
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ValueError(f"more than {MAX_CONFIG_BYTES} bytes are no settings")
            values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as a config: {error}") from error
        return cls.from_dict(values, str(path))

    @classmethod
    def from_dict(cls, values: object, origin: str) -> Config:
        """Settings as `dataclasses.asdict` gave them. Raises ConfigError, naming `origin`."""
        if not isinstance(values, dict):
            raise ConfigError(f"{origin} must hold an object of settings, not {values!r:.40}")
        problems = type_problems(values)
        if problems:
            raise ConfigError("\n".join(f"{origin}: {problem}" for problem in problems))
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"in {origin}:\n{error}") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Of two values of one name, programs take this one or that."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has two values of one name")
    return values


DEFAULTS: dict[str, object] = {f.name: f.default for f in dataclasses.fields(Config)}

CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint)
    for name, hint in get_type_hints(Config).items()
    if get_origin(hint) is Literal
}
"""The values of those settings that have a fixed set of them."""


def type_problems(
    values: Mapping[str, object], synonyms: Mapping[str, str] | None = None
) -> list[str]:
    """What is wrong with the names and types of settings that are to make a `Config`.

    Args:
        synonyms: what to do instead of a setting of another name (synonyms.py).
    """
    problems = []
    for name, value in values.items():
        if name not in DEFAULTS:
            hint = " or ".join(nearest_settings(name))
            nearest = f"did you mean {hint}?" if hint else "remove it"
            remedy = (synonyms or {}).get(name.lower(), nearest)
            problems.append(f"unknown setting {name!r:.80}; {remedy}")
            continue
        if isinstance(value, str) and len(value) > _MAX_CHARACTERS:
            problems.append(f"{name} has {len(value)} characters, and must be a name or a path")
            continue
        if isinstance(value, str) and value != printable(value):
            problems.append(f"{name}={value!r:.80} has characters that are no text")
            continue
        expected = type(DEFAULTS[name])
        accepted = (int, float) if expected is float else expected
        if not isinstance(value, accepted) or isinstance(value, bool) != (expected is bool):
            problems.append(f"{name}={value!r:.80} must be of type {expected.__name__}")
    return problems


def nearest_settings(name: str) -> list[str]:
    """At most three that are spelled like it."""
    return difflib.get_close_matches(name[:_MAX_NAME], DEFAULTS, n=3, cutoff=0.5)


def _is_float32(value: float) -> bool:
    return _FLOAT32[0] <= abs(value) <= _FLOAT32[1]


def _nearest_multiple(value: int, unit: int) -> int:
    """The multiple of `unit` nearest to `value`, at least one `unit`."""
    return unit * max(1, round(value / unit))
