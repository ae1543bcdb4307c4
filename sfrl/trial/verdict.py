"""What random play and the training run come to: can it be trained, how fast, what to set."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sfrl.envs import EnvSpec, Leaf
from sfrl.records import bottleneck
from sfrl.records.metrics import EPISODE_WINDOW, Record
from sfrl.records.timing import COMPONENT_STAGES
from sfrl.runs.reader import last_interval
from sfrl.settings.config import Config
from sfrl.settings.machine import machine
from sfrl.systems import SYSTEMS
from sfrl.trial.look import Look
from sfrl.trial.training import Training
from sfrl.tune.tuner import HELPS, Outlook

Verdict = Literal["fine", "breaks rules", "cannot be trained", "not known"]

FRAMES = (1_000_000, 10_000_000)
"""To which minutes are told."""

_WAITS = 0.5  # of its time, that need no core
_WAIT_US = 500.0  # a step this short is not worth threads
_RARE = 0.01  # of decisions with a reward
_LARGE = 20.0  # numbers that a network should not see as they are
_LARGE_BYTES = 256 << 10  # of an observation
_LONG_VECTOR = 4096
_MANY_EPISODES = 10
_MANY_BYTES = 2000  # printed
_LEARNED_SE = 3.0  # standard errors above random play, since scores are looked at again and again


class Mean(NamedTuple):
    """Of random play's returns."""

    mean: float
    interval: float | None
    """Half of it: twice the standard error. None: of one episode alone."""


class Curve(NamedTuple):
    """What the training run's records tell."""

    points: list[tuple[float, int, float]]
    """Seconds since the start, frames, score."""
    score: float | None
    frames: int
    seconds: float
    frames_per_s: float | None
    """Once it learned; None: it had no time for that."""
    working: dict[str, float]
    """The share of its time that each component worked, likewise."""
    restarts: int
    is_better: bool | None
    """Than random play; None: cannot be told."""


class Advice(NamedTuple):
    """What to set, or to do."""

    text: str
    flag: str | None = None


@dataclass(frozen=True)
class Trial:
    """All that is known of an environment. What has not been reached is None."""

    env: str
    seconds: float
    command: str
    """What trains it with these settings."""
    load: float = 0.0
    """The load average of the minute before: processes that had or wanted a core."""
    reason: str | None = None
    """Why it cannot be trained."""
    is_machines: bool = False
    """The reason is the machine's."""
    is_usage: bool = False
    """The reason is a flag, or a name that means nothing."""
    config: Config | None = None
    spec: EnvSpec | None = None
    caveats: tuple[str, ...] = ()
    look: Look | None = None
    training: Training | None = None
    outlook: Outlook | None = None

    @property
    def verdict(self) -> Verdict:
        if self.reason is not None:
            return "not known" if self.is_machines else "cannot be trained"
        return "breaks rules" if self.look and self.look.problems else "fine"

    @property
    def random(self) -> Mean | None:
        """The mean return of random play; None if no episode ended."""
        return mean_of(self.look.returns) if self.look and self.look.returns else None

    @property
    def curve(self) -> Curve | None:
        if self.training is None or not self.training.records:
            return None
        return curve_of(self.training.records, self.look.returns if self.look else [])

    @property
    def waits(self) -> bool:
        """Whether a step waits for something rather than computes."""
        seen = self.look
        if not seen or not seen.decisions:
            return False
        return step_us(seen) > _WAIT_US and seen.idle > _WAITS


def mean_of(returns: Sequence[float]) -> Mean:
    if len(returns) < 2:
        return Mean(statistics.fmean(returns), None)
    error = statistics.stdev(returns) / math.sqrt(len(returns))
    return Mean(statistics.fmean(returns), 2 * error)


def curve_of(records: Sequence[Record], random_returns: Sequence[float]) -> Curve:
    points = [
        (record["time_s"] or 0.0, int(record["env_frames"] or 0), score)
        for record in records
        if (score := record["episode_return_mean"]) is not None
    ]
    last = records[-1]
    learned = [record for record in records if record["learner_steps"]]
    steady = learned[len(learned) // 4 :]  # without what warms up
    frames_per_s = None
    if len(steady) > 1:
        first = steady[0]
        passed_s = (last["time_s"] or 0.0) - (first["time_s"] or 0.0)
        frames = (last["env_frames"] or 0) - (first["env_frames"] or 0)
        frames_per_s = frames / passed_s if passed_s > 0 else None
    working: dict[str, float] = {}
    for component in COMPONENT_STAGES:
        shares = [s for r in steady[1:] if (s := r[f"{component}/working"]) is not None]
        if shares:
            working[component] = statistics.fmean(shares)
    score = last["episode_return_mean"]
    return Curve(
        points,
        score,
        int(last["env_frames"] or 0),
        last["time_s"] or 0.0,
        frames_per_s,
        working,
        int(last["worker_restarts"] or 0),
        _is_better(score, int(last["episodes"] or 0), random_returns),
    )


def _is_better(score: float | None, episodes: int, random_returns: Sequence[float]) -> bool | None:
    """By more than both means' errors, with the spread of random play for both."""
    if score is None or len(random_returns) < 2:
        return None
    mean, spread = statistics.fmean(random_returns), statistics.stdev(random_returns)
    in_window = min(episodes, EPISODE_WINDOW)
    error = spread * math.sqrt(1 / len(random_returns) + 1 / in_window)
    return score > mean + _LEARNED_SE * error


def step_us(seen: Look) -> float:
    """Of a decision, without resets. `seen` has some."""
    return max(0.0, seen.seconds - seen.reset_seconds) / seen.decisions * 1e6


def limit_of(trial: Trial) -> str | None:
    """What limits training here, in words; None: not known."""
    curve = trial.curve
    if trial.config and trial.config.serial:
        return "--serial: one thread does all, in turn"
    if trial.waits and trial.config and trial.config.threads_per_worker == 1:
        return "the environments' waiting: a step leaves its core idle"
    if trial.outlook is not None:
        parts = ", ".join(f"{share:.0%} {part}" for part, share in trial.outlook.shares.items())
        return f"{trial.outlook.limit} (work: {parts})"
    if not curve or trial.training is None:
        return None
    return bottleneck.limit_of(last_interval(trial.training.records)[1], is_serial=False)


def minutes_to(trial: Trial, frames: int) -> float | None:
    curve = trial.curve
    if curve is None or not curve.frames_per_s:
        return None
    return frames / curve.frames_per_s / 60


def advice(trial: Trial) -> list[Advice]:
    """What to set, each with its figure; nothing for what cannot be trained at all."""
    if trial.reason is not None or not (trial.config and trial.spec and trial.look):
        return []
    parts = (_of_episodes, _of_rewards, _of_observations, _of_speed, _of_learning)
    return list(itertools.chain.from_iterable(part(trial) for part in parts))


def _of_episodes(trial: Trial) -> Iterator[Advice]:
    seen = trial.look
    assert seen is not None
    if any(problem.rule == "finite" for problem in seen.problems):
        yield Advice(
            "NaN and infinity cut episodes off; to find the first one, let it end the run",
            "--on-nan=stop",
        )
    has_limit = seen.max_episode_steps is not None or seen.observation_space is None
    if seen.decisions > 0 and not seen.returns and not has_limit:
        yield Advice(
            f"no episode ended in {seen.decisions:,} decisions, and there is no limit of time: "
            f"without ends there is no score",
            """--wrappers='TimeLimit{"max_episode_steps":1000}'""",
        )


def _of_rewards(trial: Trial) -> Iterator[Advice]:
    seen, config = trial.look, trial.config
    assert seen is not None
    assert config is not None
    if seen.decisions < 100:
        return
    if not seen.rewarded:
        bonus = 3 * getattr(config, "entropy_coef", 0.0)
        yield Advice(
            f"no reward in {seen.decisions:,} random decisions: reward progress as well, or "
            f"explore more",
            f"--entropy-coef={bonus:.3g}" if bonus else None,
        )
        return
    if len(seen.returns) >= _MANY_EPISODES and min(seen.returns) == max(seen.returns):
        yield Advice(
            f"all {len(seen.returns):,} random episodes return {seen.returns[0]:g}: there is "
            f"nothing to learn if what the agent does changes nothing"
        )
        return
    if seen.rewarded >= _RARE * seen.decisions:
        return
    gap = seen.decisions / seen.rewarded
    text = f"rewards are rare, one in {gap:,.0f} random decisions"
    ahead = min(gap, max(seen.lengths, default=seen.decisions))  # none is due beyond an episode
    horizon = 1 / (1 - config.gamma) if config.gamma < 1 else math.inf
    if ahead > horizon:
        yield Advice(
            f"{text}, and gamma={config.gamma:g} looks {horizon:,.0f} ahead",
            f"--gamma={1 - 10.0 ** -math.ceil(math.log10(ahead)):g}",
        )
    else:
        yield Advice(f"{text}: reward progress as well, or take time")


def _of_observations(trial: Trial) -> Iterator[Advice]:
    seen, config, spec = trial.look, trial.config, trial.spec
    assert seen is not None
    assert config is not None
    assert spec is not None
    scales = {leaf.name: leaf.scale for leaf in spec.leaves}
    large = {n: size for n, size in seen.largest.items() if size > _LARGE * scales.get(n, 1.0)}
    is_fixed = "normalize_obs" in SYSTEMS[config.system].fixed
    if large and not config.normalize_obs and not is_fixed:
        name = max(large, key=large.__getitem__)
        yield Advice(f"numbers of {name} reach {large[name]:,.0f}", "--normalize-obs")
    for leaf in spec.leaves:
        size = math.prod(leaf.shape)
        if leaf.kind == "image" and _bytes_of(leaf) > _LARGE_BYTES:
            side = max(leaf.shape[1:]) // 2
            yield Advice(
                f"{leaf.name} has {_bytes_of(leaf) / 1024:,.0f} KiB in each step",
                f"--image-size={side}" if spec.kind != "atari" else None,
            )
        elif leaf.kind == "vector" and size > _LONG_VECTOR:
            yield Advice(
                f"{leaf.name} is a vector of {size:,} numbers: leave out what does not matter, "
                f"by a wrapper of yours (--wrappers=my_module:Wrapper)"
            )


def _bytes_of(leaf: Leaf) -> int:
    return math.prod(leaf.shape) * (1 if leaf.dtype in ("uint8", "bool") else 4)


def _of_speed(trial: Trial) -> Iterator[Advice]:
    seen, config, outlook = trial.look, trial.config, trial.outlook
    assert seen is not None
    assert config is not None
    if not seen.decisions:
        return
    if trial.waits and config.threads_per_worker == 1 and seen.observation_space is not None:
        yield Advice(
            f"a step takes {step_us(seen) / 1e3:.1f} ms, and {seen.idle:.0%} of it is "
            f"waiting: let several environments of a worker step at once",
            f"--threads-per-worker={min(16, config.envs_per_worker)}",
        )
    elif outlook is not None:
        for what, gain in outlook.gains.items():
            if gain >= HELPS:
                yield Advice(f"{what} would give up to {gain:.1f} times the frames/s")
        learning = outlook.shares.get("learning", 0.0)
        if learning > 0.5 and config.epochs > 1 and machine()["gpu"] is None:
            epochs = config.epochs // 2
            yield Advice(
                f"{learning:.0%} of the work is learning, {config.epochs} times from each "
                f"decision; {epochs} make frames cheaper, and learn less from each",
                f"--epochs={epochs}",
            )
    share = seen.reset_seconds / seen.seconds if seen.seconds else 0.0
    if share > 0.3 and seen.resets:
        yield Advice(
            f"resets take {share:.0%} of its time, "
            f"{seen.reset_seconds / seen.resets * 1e3:.1f} ms each: make them cheaper, or episodes "
            f"longer"
        )
    if seen.printed_bytes > _MANY_BYTES:
        yield Advice(
            f"it printed {seen.printed_bytes / 1024:,.0f} KiB in {seen.decisions:,} decisions, "
            f"which takes time and hides the log: silence it"
        )


def _of_learning(trial: Trial) -> Iterator[Advice]:
    curve, config, seen = trial.curve, trial.config, trial.look
    assert config is not None
    assert seen is not None
    if curve is None:
        return
    if curve.restarts:
        yield Advice(
            f"workers died {curve.restarts} times in training and were replaced; log.txt of a run "
            f"tells why"
        )
    if curve.is_better is False and min(seen.returns) < max(seen.returns):
        text = f"no better than random play after {curve.frames:,} frames, which is early"
        further = "if what matters is not in the last observation,"
        if config.replay is None and config.rnn == "none":
            yield Advice(f"{text}; {further} add a memory", "--rnn=gru")
        elif config.frame_stack == 1 and seen.observation_space is not None:
            yield Advice(f"{text}; {further} show several", "--frame-stack=4")
        else:
            yield Advice(text)
