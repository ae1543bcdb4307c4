"""CartPole with faults, registered at import: `--env=tests.faulty_env:Raises-v0`."""

import os
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box

NUM_GOOD_STEPS = 50


class Raises(CartPoleEnv):
    """Breaks down after `NUM_GOOD_STEPS`."""

    def __init__(self):
        super().__init__()
        self.num_steps = 0

    def step(self, action):
        self.num_steps += 1
        if self.num_steps > NUM_GOOD_STEPS:
            raise RuntimeError("the pole broke")
        return super().step(action)


class RaisesAtStart(CartPoleEnv):
    """Can be made, once, for a look at its spaces; not played."""

    def reset(self, **kwargs):
        raise RuntimeError("there is no \x1b[31mpole")


class BreaksForGood(Raises):
    """Once one of them has broken down no other one, in no process, begins."""

    def reset(self, **kwargs):
        if Path("broken").exists():
            raise RuntimeError(f"no answer from {id(self):#x}")
        return super().reset(**kwargs)

    def step(self, action):
        if self.num_steps == NUM_GOOD_STEPS:
            Path("broken").touch()
        return super().step(action)


class HangsAtStart(CartPoleEnv):
    """Cannot be made, and says so in a file."""

    def __init__(self):
        Path("hanging").touch()
        time.sleep(3600)


class HangsAtClose(CartPoleEnv):
    """Once it has made a step it does not end: its worker must be killed."""

    has_stepped = False

    def step(self, action):
        self.has_stepped = True
        return super().step(action)

    def close(self):
        if self.has_stepped:
            time.sleep(3600)


class SlowStart(CartPoleEnv):
    """Takes its time twice: to be made, and for a reset."""

    def __init__(self):
        super().__init__()
        time.sleep(0.9)

    def reset(self, **kwargs):
        time.sleep(0.9)
        return super().reset(**kwargs)


class Hangs(CartPoleEnv):
    """Its second environment never returns from step `NUM_GOOD_STEPS`."""

    num_made = 0
    faulty = 2

    def __init__(self):
        super().__init__()
        Hangs.num_made += 1
        self.number, self.num_steps = Hangs.num_made, 0

    def step(self, action):
        self.num_steps += 1
        if self.number == self.faulty and self.num_steps == NUM_GOOD_STEPS:
            time.sleep(3600)
        return super().step(action)


class SixthHangs(Hangs):
    faulty = 6


class LeavesAHelper(CartPoleEnv):
    """Starts a process that outlives its worker, and holds all that this one has open."""

    has_stepped = False

    def step(self, action):
        if not self.has_stepped and os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        self.has_stepped = True
        return super().step(action)


class RaisesBesideAThread(Raises):
    """A thread goes on that nobody will end."""

    def step(self, action):
        if self.num_steps == 0:
            threading.Thread(target=time.sleep, args=(3600,)).start()
        return super().step(action)


class GivesNaN(Raises):
    def step(self, action):
        self.num_steps += 1
        observation, _, *rest = CartPoleEnv.step(self, action)
        return observation, float("nan") if self.num_steps > NUM_GOOD_STEPS else 1.0, *rest


class AllowsNothing(Raises):
    """After `NUM_GOOD_STEPS`; the error shows what was observed."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], {"action_mask": [1, 1]}

    def step(self, action):
        self.num_steps += 1
        observation, *outcome, _ = CartPoleEnv.step(self, action)
        masks = [int(self.num_steps <= NUM_GOOD_STEPS)] * 2
        return 1e3 * observation**5, *outcome[:1], False, False, {"action_mask": masks}


class IgnoresSeeds(CartPoleEnv):
    """Begins anywhere, whatever its seed."""

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.state = self.starts.uniform(-0.05, 0.05, 4)
        return np.array(self.state, np.float32), {}

    starts = np.random.default_rng(0)


class StraysLate(CartPoleEnv):
    """Its third step of an episode is pushed by chance that no seed decides."""

    chance = np.random.default_rng(0)

    def reset(self, **kwargs):
        self.num_steps = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.num_steps += 1
        if self.num_steps == 3:
            self.state = np.array(self.state) + self.chance.uniform(-1e-3, 1e-3, 4)
        return super().step(action)


class LeavesItsSpace(CartPoleEnv):
    """Its space says that the cart stays nearer than it does."""

    def __init__(self):
        super().__init__()
        self.observation_space = Box(-0.01, 0.01, (4,), np.float32)


class WrongShape(Raises):
    """One number too many, after a while."""

    def step(self, action):
        self.num_steps += 1
        observation, *rest = CartPoleEnv.step(self, action)
        return np.append(observation, 0) if self.num_steps > NUM_GOOD_STEPS else observation, *rest


class RaisesInTraining(CartPoleEnv):
    """Only the processes of a run see it break down."""

    def reset(self, **kwargs):
        if "rollout" in Path("/proc/self/cmdline").read_text():
            raise RuntimeError("only alone")
        return super().reset(**kwargs)


gymnasium.register("RaisesInTraining-v0", RaisesInTraining, max_episode_steps=500)
gymnasium.register("IgnoresSeeds-v0", IgnoresSeeds, max_episode_steps=500)
gymnasium.register("StraysLate-v0", StraysLate, max_episode_steps=500)
gymnasium.register("LeavesItsSpace-v0", LeavesItsSpace, max_episode_steps=500)
gymnasium.register("WrongShape-v0", WrongShape, max_episode_steps=500)
gymnasium.register("AllowsNothing-v0", AllowsNothing)
gymnasium.register("LeavesAHelper-v0", LeavesAHelper, max_episode_steps=500)
gymnasium.register("RaisesBesideAThread-v0", RaisesBesideAThread, max_episode_steps=500)
gymnasium.register("GivesNaN-v0", GivesNaN, max_episode_steps=500)
gymnasium.register("Hangs-v0", Hangs, max_episode_steps=500)
gymnasium.register("SlowStart-v0", SlowStart, max_episode_steps=500)
gymnasium.register("SixthHangs-v0", SixthHangs, max_episode_steps=500)
gymnasium.register("RaisesAtStart-v0", RaisesAtStart)
gymnasium.register("BreaksForGood-v0", BreaksForGood, max_episode_steps=500)
gymnasium.register("Raises-v0", Raises, max_episode_steps=500)
gymnasium.register("HangsAtStart-v0", HangsAtStart)
gymnasium.register("HangsAtClose-v0", HangsAtClose, max_episode_steps=500)
