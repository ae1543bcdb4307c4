"""CartPole that treats its process as simulators do: `--env=tests.guest_env:Hosts-v0`."""

import json
import logging.config
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

FACTS = "GUEST_FACTS"  # the variable with the folder where they note what they have seen
PROGRAM = ["sleep", "4242"]
NUM_GOOD_STEPS = 50


def is_in_worker() -> bool:
    return Path("/proc/self/cmdline").read_text().startswith("sfrl rollout")


class Hosts(CartPoleEnv):
    """Runs a program and a fork, has a time limit of its own, and logs. All of that is allowed."""

    program = None

    def step(self, action):
        if self.program is None:
            self._look_around()
            self.program = subprocess.Popen(PROGRAM)
            fork = multiprocessing.get_context("fork").Process
            self.fork = fork(target=time.sleep, args=(4242,))
            self.fork.start()
        logging.info("a step, in all detail")
        return super().step(action)

    def _look_around(self):
        status = Path("/proc/self/status").read_text().splitlines()
        pairs = dict(line.split(":", 1) for line in status)
        facts = {name: int(pairs[name], 16) for name in ("SigBlk", "SigIgn")}
        facts["threads"] = os.environ.get("OPENBLAS_NUM_THREADS")
        facts["alarm"] = self._alarm_comes()
        Path(os.environ[FACTS], f"{os.getpid()}.json").write_text(json.dumps(facts))
        logging.warning("it has looked around")

    def _alarm_comes(self):
        def give_up(*_):
            raise TimeoutError

        previous = signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            time.sleep(10)
        except TimeoutError:
            return True
        finally:
            signal.signal(signal.SIGALRM, previous)
        return False

    def close(self):
        if self.program is not None:
            self.program.terminate()
            self.program.wait()
            self.fork.terminate()
            self.fork.join()


class HangsHosting(Hosts):
    """The first one leaves a program in the background as well; none of them ends in order."""

    num_made = 0

    def __init__(self):
        super().__init__()
        HangsHosting.num_made += 1
        if HangsHosting.num_made == 1 and is_in_worker():
            subprocess.run(["sh", "-c", "sleep 4242 &"], check=True)

    def close(self):
        if self.program is not None:
            time.sleep(4242)


class Depends(CartPoleEnv):
    """Waits for a program in a step, and fails when that is killed."""

    num_steps = 0

    def step(self, action):
        self.num_steps += 1
        if self.num_steps > NUM_GOOD_STEPS:
            subprocess.run(PROGRAM, check=True)
        return super().step(action)


class Exits(CartPoleEnv):
    """Silences what logging knows, starts a thread and a stubborn program, and leaves."""

    num_steps = 0

    def step(self, action):
        self.num_steps += 1
        if self.num_steps == 1 and is_in_worker():
            previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen(PROGRAM)  # what is ignored stays so
            signal.signal(signal.SIGTERM, previous)
            threading.Thread(target=time.sleep, args=(4242,)).start()
            logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})
            logging.disable(logging.CRITICAL)
            logging.getLogger("sfrl.workers.rollout_worker").warning("still heard")
        if self.num_steps > NUM_GOOD_STEPS:
            sys.exit("the game has ended")
        return super().step(action)


class ForksBack(CartPoleEnv):
    """Lets a fork come back out of step: the first one returns, the second one raises."""

    num_steps = 0

    def step(self, action):
        self.num_steps += 1
        if self.num_steps in (50, 100) and os.fork() == 0 and self.num_steps == 100:
            raise RuntimeError("in the fork")
        return super().step(action)


class Closes(CartPoleEnv):
    """Closes what it did not open."""

    num_steps = 0

    def step(self, action):
        self.num_steps += 1
        if self.num_steps == NUM_GOOD_STEPS and is_in_worker():
            os.closerange(3, 1024)
        return super().step(action)


class Prints(CartPoleEnv):
    """More than a pipe holds, by itself and by a program."""

    num_steps = 0

    def step(self, action):
        self.num_steps += 1
        if self.num_steps % 50 == 0:
            print("x" * 100_000)
            sys.stderr.write("a complaint\n")
            subprocess.run(["echo", "the program's line"], check=True)
        return super().step(action)


class Reconfigures(CartPoleEnv):
    """Has its own idea of logging, as applications do."""

    def reset(self, **kwargs):
        logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})
        return super().reset(**kwargs)


class ForksAtInit(CartPoleEnv):
    """Has a server from the start, which it ends itself."""

    def __init__(self):
        super().__init__()
        self.server = multiprocessing.get_context("fork").Process(target=time.sleep, args=(4242,))
        self.server.start()

    def close(self):
        self.server.terminate()
        self.server.join()


GUESTS = (Hosts, HangsHosting, Depends, Exits, ForksBack, Closes, Prints, Reconfigures, ForksAtInit)
for guest in GUESTS:
    gymnasium.register(f"{guest.__name__}-v0", guest, max_episode_steps=500)
