"""Random play: whether an environment keeps the rules, what it gives, and how long it takes.

The play is that of a run: the same copies (`envs.make_vec_env`), whose every step is checked by
envs/rules.py.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from sfrl import envs
from sfrl.envs.forks import end_if_forked, forks_noticed
from sfrl.envs.logs import logging_to, printable
from sfrl.envs.spaces import in_short
from sfrl.run.child import die_with_parent
from sfrl.trial.look import Look, Rule

NUM_COPIES = 2  # the fewest that can get into each other's way
_REPLAYED = 100  # steps, at most
_PLAY, _REPLAY = 0.75, 0.15  # of the time, at most
_ENOUGH, _ENOUGH_S = 300, 2.0  # episodes and time after which more play tells little more
_CHECKED_STARTS = 8  # the time of Gymnasium's checker, in starts of two copies
_TELL_S = 0.25  # between two messages, at most

_LOGGERS: dict[str, Rule] = {
    "sfrl.envs.rules": "bounds",
    "sfrl.envs.gymnasium_envs": "finite",
    "sfrl.envs.vector_envs": "finite",
}


def tell(
    sender: connection.Connection,
    parent: int,
    env: str,
    options: dict[str, Any],
    seed: int,
    seconds: float,
) -> None:
    """Send what it does and what was seen so far, again and again; ("", all) at the end."""
    die_with_parent(parent)
    seen = Look()
    teller = _Teller(sender, seen)
    with logging_to(_Notes(seen)), forks_noticed():
        try:
            _Player(env, envs.EnvOptions(**options), seed, seconds, teller).play_all()
        except envs.EnvError as error:
            rule: Rule = "finite" if isinstance(error, envs.NonFiniteError) else "types"
            seen.has_broken(rule, str(error), is_fatal=True)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the environment's
            end_if_forked(error)
            where = "; ".join(getattr(error, "__notes__", ())) or teller.doing
            text = f"it raises {envs.in_one_line(error)}, {where}"
            seen.has_broken("returns", text, is_fatal=True)
    sender.send(("", seen))


class _Notes(logging.Handler):
    """Makes the warnings of envs/ problems."""

    def __init__(self, seen: Look) -> None:
        super().__init__(logging.WARNING)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        if rule := _LOGGERS.get(record.name):
            self._seen.has_broken(rule, record.getMessage())


class _Teller:
    """Tells the parent what the environment does: often at first, then every `_TELL_S`."""

    def __init__(self, sender: connection.Connection, seen: Look) -> None:
        self.seen, self.doing = seen, "when it was made"
        self._sender = sender
        self._begun_s = self._told_s = time.monotonic()

    def begin(self, doing: str) -> None:
        self.doing = doing
        self._begun_s = self._told_s = time.monotonic()
        self._sender.send((doing, self.seen))

    def go_on(self, doing: str) -> None:
        """Tell of it if it is time to."""
        now_s = time.monotonic()
        if now_s - self._told_s >= min(_TELL_S, (now_s - self._begun_s) / 10):
            self.doing, self._told_s = doing, now_s
            self._sender.send((doing, self.seen))


class _Step(NamedTuple):
    """Of the play, to be compared with its repetition."""

    actions: NDArray[Any]
    result: envs.StepResult


class _Player:
    def __init__(
        self, env: str, options: envs.EnvOptions, seed: int, seconds: float, teller: _Teller
    ) -> None:
        self._env, self._options, self._seed, self._seconds = env, options, seed, seconds
        self._teller, self._seen = teller, teller.seen
        self._start_s = self._start_takes_s = 0.0  # of the play; of what comes before it

    def play_all(self) -> None:
        self._read_spaces()
        self._teller.begin("when two of them were made")
        begin_s = time.monotonic()
        with closing(self._make()) as env:
            first, steps = self._play(env, begin_s)
        self._seen.checked += ["returns", "types", "finite", "bounds"]
        if self._start_takes_s > (1 - _PLAY) * self._seconds:
            return  # it takes too long to be made again
        self._teller.begin("when it was made again")
        with closing(self._make()) as env:
            self._replay(env, first, steps)
        self._seen.checked.append("seeds")
        # The checker draws any action, and need not know which ones are legal.
        if envs.ACTION_MASK not in first and _CHECKED_STARTS * self._start_takes_s < self._seconds:
            self._check()

    def _make(self) -> envs.VecEnv:
        return envs.make_vec_env(self._env, NUM_COPIES, self._seed, self._options)

    def _has_time(self, share: float) -> bool:
        return time.monotonic() - self._start_s < share * self._seconds

    def _own_env(self, options: envs.EnvOptions) -> gymnasium.Env[Any, Any] | None:
        """As Gymnasium makes it; None: it has none of its own, as Atari games and vectors."""
        # Not by the class: EnvPool's vectors are a `gymnasium.Env` as well.
        if envs.atari_game(self._env) is not None or envs.find_vectors(self._env) is not None:
            return None
        env: gymnasium.Env[Any, Any] = envs.make_env(self._env, options)
        return env

    def _read_spaces(self) -> None:
        self._teller.begin("when it was made")
        env = self._own_env(self._options)
        if env is None:
            return
        with closing(env):
            self._seen.observation_space = in_short(env.observation_space)
            self._seen.action_space = in_short(env.action_space)
            self._seen.max_episode_steps = env.spec.max_episode_steps if env.spec else None

    def _play(self, env: envs.VecEnv, begin_s: float) -> tuple[envs.Observations, list[_Step]]:
        """The first observations, and the first steps.

        Args:
            begin_s: when the copies began to be made.
        """
        seen, rng = self._seen, np.random.default_rng(self._seed)
        self._teller.begin("in its first reset")
        obs = first = _copied(env.reset())
        vectors = [n for n, rows in obs.items() if rows.ndim == 2 and rows.dtype == np.float32]
        self._start_s = time.monotonic()
        self._start_takes_s = self._start_s - begin_s
        steps: list[_Step] = []
        returns, lengths = np.zeros(NUM_COPIES), np.zeros(NUM_COPIES, np.int64)
        no_decision, resets = np.zeros((2, NUM_COPIES), np.bool_)
        times = _Times()
        self._teller.begin("in the first step of random play")
        core_s, start_s = _core_seconds(), time.perf_counter()
        while self._has_time(_PLAY) and not (
            len(seen.returns) >= _ENOUGH and seen.seconds >= _ENOUGH_S
        ):
            actions = envs.random_actions(env.actions, obs, rng)
            sent_s = time.perf_counter()
            env.send(actions.copy())
            result = env.recv()
            times.add(time.perf_counter() - sent_s, int(resets.sum()))
            obs = result.obs
            if len(steps) < _REPLAYED:
                steps.append(_Step(actions, result._replace(obs=_copied(obs))))
            stepped = ~no_decision
            seen.decisions += int(stepped.sum())
            returns += result.rewards
            lengths += stepped
            seen.rewarded += int(np.count_nonzero(result.rewards[stepped]))
            if stepped.any():
                rewards = result.rewards[stepped]
                seen.reward_low = min(seen.reward_low, float(rewards.min()))
                seen.reward_high = max(seen.reward_high, float(rewards.max()))
            for name in vectors:
                largest = float(np.abs(obs[name].astype(np.float64)).max())
                seen.largest[name] = max(seen.largest.get(name, 0.0), largest)
            no_decision, resets = result.ended, result.ended & result.scored
            is_cut = result.truncated & ~result.terminated
            seen.terminated += int((result.scored & ~is_cut).sum())
            seen.truncated += int(is_cut.sum())
            for i in np.flatnonzero(result.scored).tolist():
                seen.returns.append(float(returns[i]))
                seen.lengths.append(int(lengths[i]))
                returns[i] = lengths[i] = 0
                seen.info = seen.info or sorted(envs.numbers_in(env.episode_info(i)))
            seen.seconds = time.perf_counter() - start_s
            seen.idle = max(0.0, 1 - (_core_seconds() - core_s) / seen.seconds)
            seen.resets, seen.reset_seconds = times.resets, times.reset_seconds
            self._teller.go_on(f"after {seen.decisions:,} decisions of random play")
        return first, steps

    def _replay(self, env: envs.VecEnv, first: envs.Observations, steps: list[_Step]) -> None:
        """The same seed and the same actions once more."""
        self._teller.begin("in the reset with a seed that it had before")
        if name := _difference(first, env.reset()):
            self._seen.has_broken(
                "seeds",
                f"the same seed gives another first {name}: let reset call "
                f"super().reset(seed=seed), and draw from self.np_random alone",
            )
            return
        end_s = time.monotonic() + _REPLAY * self._seconds
        for number, step in enumerate(steps, 1):
            if time.monotonic() > end_s:
                return
            self._teller.go_on(f"in step {number} of an episode that it had before")
            env.send(step.actions.copy())
            result = env.recv()
            names = ("rewards", "terminated", "truncated")
            others = [n for n in names if not _same(getattr(step.result, n), getattr(result, n))]
            if found := _difference(step.result.obs, result.obs) or next(iter(others), None):
                self._seen.has_broken(
                    "seeds",
                    f"with the same seed and the same actions step {number} gives another {found}: "
                    f"draw from self.np_random alone",
                )
                return

    def _check(self) -> None:
        """By Gymnasium's checker, without its advice."""
        self._teller.begin("in Gymnasium's checker")
        env = self._own_env(dataclasses.replace(self._options, wrappers=""))
        if env is None or not self._has_time(1):
            return
        with closing(env):
            try:
                check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
            except Exception as error:  # its own, or the environment's
                text = " ".join(str(error).split()) or type(error).__name__
                self._seen.has_broken("gymnasium", printable(text[:300]))
        self._seen.checked.append("gymnasium")


class _Times:
    """Takes the time of resets apart from that of steps, which come together."""

    def __init__(self) -> None:
        self.resets = 0
        self._calls, self._seconds = 0, 0.0  # without a reset
        self._mixed_steps, self._mixed_seconds = 0, 0.0

    def add(self, seconds: float, resets: int) -> None:
        if resets:
            self.resets += resets
            self._mixed_steps += NUM_COPIES - resets
            self._mixed_seconds += seconds
        else:
            self._calls += 1
            self._seconds += seconds

    @property
    def reset_seconds(self) -> float:
        step_s = self._seconds / (NUM_COPIES * self._calls) if self._calls else 0.0
        return max(0.0, self._mixed_seconds - self._mixed_steps * step_s)


def _core_seconds() -> float:
    """That it had a core, in all threads and in children that have ended, or waited for one."""
    times = os.times()
    had_s = times.user + times.system + times.children_user + times.children_system
    try:
        waited_ns = int(Path("/proc/self/schedstat").read_text().split()[1])  # the main thread's
    except (OSError, IndexError, ValueError):  # a kernel without it
        waited_ns = 0
    return had_s + waited_ns / 1e9


def _copied(obs: envs.Observations) -> envs.Observations:
    return copy.deepcopy(obs)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _difference(one: envs.Observations, other: envs.Observations) -> str | None:
    """What differs, None if nothing does."""

    def differing() -> Iterator[str]:
        for name, rows in one.items():
            if not _same(rows, other[name]):
                yield f"observation ({name})" if len(one) > 1 else "observation"

    return next(differing(), None)
