"""Vectors for tests, registered at import: `--env=tests.vectors:Ticks-v0`."""

from functools import partial

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from sfrl.envs import ActionSpec, Leaf, StepResult


class Ticks(gymnasium.Env):
    """Shows the step and how many the episode has, 2 to 5; the reward is the action plus 1."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.observation_space = Box(-1, 9, (2,), np.float64)
        self.action_space = Discrete(3)
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(2, 6))
        return np.array([0.0, self.length]), {}

    def step(self, action):
        self.t += 1
        is_over = self.t == self.length
        terminated = is_over and self.length % 2 == 0
        obs = np.array([self.t, self.length], np.float64)
        info = {"length": self.t, "lives": 0}
        return obs, float(action) + 1, terminated, is_over and not terminated, info

    def render(self):
        return np.full((8, 8, 3), self.t, np.uint8)


class InFloat32(Ticks):
    def __init__(self):
        super().__init__()
        self.observation_space = Box(-1, 9, (2,), np.float32)


class Nested(Ticks):
    """Ticks as a Dict, with a mask in `info` that allows the action t % 3 alone."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.observation_space = Dict(
            tick=Tuple((Discrete(10), Box(-1, 9, (2,), np.float64))),
            picture=Box(0, 255, (8, 8, 3), np.uint8),
        )

    def _seen(self, obs):
        return {"tick": (self.t, obs), "picture": self.render()}, {
            "action_mask": np.arange(3) == self.t % 3
        }

    def reset(self, *, seed=None, options=None):
        return self._seen(super().reset(seed=seed)[0])

    def step(self, action):
        obs, *outcome, _ = super().step(action)
        obs, info = self._seen(obs)
        return obs, *outcome, info


def sync(num_envs, env_class=Ticks, mode=AutoresetMode.NEXT_STEP, **kwargs):
    return SyncVectorEnv([partial(env_class, **kwargs)] * num_envs, autoreset_mode=mode)


def sync_of_any_mode(num_envs, autoreset_mode=AutoresetMode.SAME_STEP):
    return sync(num_envs, mode=autoreset_mode)


class Blind(VectorEnv):
    """Says nothing of its mode."""

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = Box(0, 1, (1,)), Discrete(2)


class Same(SyncVectorEnv):
    """Resets in the same step, and says that it does in the next one."""

    def __init__(self, num_envs):
        super().__init__([Ticks] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}


def broken(num_envs, after, **values):
    """Ticks that gives `values` instead of what it gives, from step `after` on."""

    class Broken(SyncVectorEnv):
        num_steps = 0

        def step(self, actions):
            names = ("obs", "rewards", "terminated", "truncated", "infos")
            given = dict(zip(names, super().step(actions), strict=True))
            self.num_steps += 1
            if values.get("error") and self.num_steps > after:
                raise values["error"]
            return tuple((given | (values if self.num_steps > after else {})).values())

    return Broken([Ticks] * num_envs)


class Old(SyncVectorEnv):
    """Its step returns four values."""

    def __init__(self, num_envs):
        super().__init__([Ticks] * num_envs)

    def step(self, actions):
        obs, rewards, terminated, _, infos = super().step(actions)
        return obs, rewards, terminated, infos


class Older(Old):
    """And its reset the observations alone."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0]


class Lights:
    """A `VecEnv`: one of two lights is on, and the action must be the same; 5 steps long."""

    def __init__(self, num_envs, seed, render=False):
        self.num_envs, self.seed, self.frameskip = num_envs, seed, 2
        self.actions = ActionSpec(choices=(2,))
        self.leaves = (Leaf("obs", "vector", (2,), "float32"),)
        self.stepping = np.full(1, -1, np.int64)

    def reset(self):
        self.rng, self.t = np.random.default_rng(self.seed), 0
        return self._shown()

    def _shown(self):
        self.on = self.rng.integers(2, size=self.num_envs)
        return {"obs": np.eye(2, dtype=np.float32)[self.on]}

    def send(self, actions):
        self.acted = actions.copy()

    def recv(self):
        self.t = (self.t + 1) % 6  # the sixth only resets
        rewards = (self.acted == self.on).astype(np.float32) * (self.t > 0)
        ended = np.full(self.num_envs, self.t == 5)
        return StepResult(self._shown(), rewards, ended, np.zeros(self.num_envs, np.bool_))

    def episode_info(self, env):
        return {}

    def state(self):
        return None

    def load_state(self, state):
        raise NotImplementedError

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        pass


class Half:
    def __init__(self, num_envs, seed):
        pass

    def send(self, actions):
        pass

    recv = reset = state = close = send


class Forgetful(Nested):
    """Its mask is in `info` after a step and after the first reset, but not after others."""

    was_reset = False

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        info = {} if self.was_reset else info
        self.was_reset = True
        return obs, info


class Misshapen(Lights):
    def __init__(self, num_envs, seed):
        super().__init__(num_envs, seed)
        self.leaves = (Leaf("obs", "vector", (3,), "float32"),)


class Lonely(Lights):
    def __init__(self, num_envs, seed):
        super().__init__(1, seed)


class Tells(Lights):
    """Numbers as they may come, and a reward that is none."""

    REWARD = 1.0

    def recv(self):
        result = super().recv()
        return result._replace(rewards=np.full(self.num_envs, self.REWARD, np.float32))

    def episode_info(self, env):
        return {"plain": 2, "numpy": np.float32(0.5), "whole": np.int64(3), "a name": 1, "x": None}


class GivesNaN(Tells):
    REWARD = np.nan


class Skipping(Lights):
    def __init__(self, num_envs, seed):
        super().__init__(num_envs, seed)
        self.frameskip = 0


DISABLED, SAME_STEP = AutoresetMode.DISABLED, AutoresetMode.SAME_STEP
IDS = {
    "Ticks-v0": sync,
    "Disabled-v0": lambda num_envs: sync(num_envs, mode=DISABLED),
    "Switched-v0": sync_of_any_mode,
    "SameStep-v0": lambda num_envs: sync(num_envs, mode=SAME_STEP),
    "Swallows-v0": lambda num_envs, **kwargs: sync(num_envs, mode=SAME_STEP),
    "Passes-v0": lambda num_envs, **kwargs: sync_of_any_mode(num_envs, **kwargs),
    "Nested-v0": lambda num_envs: sync(num_envs, Nested),
    "Forgetful-v0": lambda num_envs: sync(num_envs, Forgetful),
    "NestedDisabled-v0": lambda num_envs: sync(num_envs, Nested, DISABLED),
    "Shared-v0": lambda num_envs: SyncVectorEnv([InFloat32] * num_envs, copy=False),
    "Blind-v0": Blind,
    "Liar-v0": Same,
    "Nan-v0": lambda num_envs: broken(num_envs, 1, rewards=np.full(num_envs, np.nan)),
    "Shape-v0": lambda num_envs: broken(num_envs, 1, obs=np.zeros((num_envs, 3))),
    "Inf-v0": lambda num_envs: broken(num_envs, 1, rewards=np.full(num_envs, 1e39)),
    "Old-v0": Old,
    "Older-v0": Older,
    "Few-v0": lambda num_envs: broken(num_envs, 1, rewards=np.zeros(num_envs + 1)),
    "RaisesTogether-v0": lambda num_envs: broken(num_envs, 1, error=OSError("no power")),
    "Fixed-v0": lambda num_envs: sync(2),
    "CartPoles-v0": "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv",
    "Sized-v0": lambda num_envs, size: CartPoleVectorEnv(num_envs, max_episode_steps=size),
}
for name, entry_point in IDS.items():
    limit = 30 if name == "CartPoles-v0" else None
    gymnasium.register(name, vector_entry_point=entry_point, max_episode_steps=limit)
gymnasium.register("Both-v0", Ticks, vector_entry_point=Blind)
