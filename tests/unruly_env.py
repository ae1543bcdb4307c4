"""CartPole whose constructor does what a trainer would not survive, registered at import."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

HELPER_S = 60.0


class Unruly(CartPoleEnv):
    """Notes its process, forks a helper, leaves a thread that never ends, and goes elsewhere."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode=render_mode)
        folder = Path(os.environ["UNRULY_FOLDER"])
        with open(folder / "made", "a") as file:
            file.write(f"{os.getpid()}\n")
        if os.fork() == 0:
            os.closerange(0, 3)  # it keeps all else that its parent has open
            time.sleep(HELPER_S)
            os._exit(0)
        threading.Thread(target=time.sleep, args=(3600,)).start()
        (folder / "elsewhere").mkdir(exist_ok=True)
        os.chdir(folder / "elsewhere")


class RaisesWhenMade(CartPoleEnv):
    def __init__(self):
        raise RuntimeError("there is\nno pole")


class ExitsWhenMade(CartPoleEnv):
    def __init__(self):
        threading.Thread(target=time.sleep, args=(3600,)).start()
        sys.exit(0)


class CrashesWhenMade(CartPoleEnv):
    def __init__(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class EndsWhenMade(CartPoleEnv):
    def __init__(self):
        os._exit(0)


class HangsWhenMade(CartPoleEnv):
    def __init__(self):
        time.sleep(3600)


class NoArray(CartPoleEnv):
    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Text(4)


for env_class in (
    Unruly,
    RaisesWhenMade,
    ExitsWhenMade,
    CrashesWhenMade,
    EndsWhenMade,
    HangsWhenMade,
    NoArray,
):
    gymnasium.register(f"{env_class.__name__}-v0", env_class, max_episode_steps=500)
