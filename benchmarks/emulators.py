"""What a decision costs without any network: our environments, ALE's vector env, EnvPool.

    python -m benchmarks.emulators
    python -m benchmarks.emulators --game=Breakout --envs=32 --windows=9

Each steps the same game with random actions in one thread, to 4 stacked 84x84 pictures, in turn,
window by window; the time is the process's own, so that other load matters little. EnvPool is
left out where it is not installed (`pip install envpool`). The last line printed is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import tyro
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.machine import machine

Actions = NDArray[np.int64]
Step = Callable[[Actions], object]


@dataclass(frozen=True, kw_only=True)
class Args:
    game: str = "Pong"
    """The Atari game."""
    envs: int = 16
    """Environments that step together."""
    steps: int = 40
    """Steps of all environments in one window."""
    windows: int = 7
    """Windows of each; the result is their median."""


def ours(game: str, num_envs: int) -> Step:
    env = envs.make_vec_env(game, num_envs, seed=0)
    env.reset()

    def step(actions: Actions) -> object:
        env.send(actions)
        return env.recv()

    return step


def ale_vector_env(game: str, num_envs: int) -> Step:
    rom = envs.atari_game(game)
    if rom is None:
        raise SystemExit(f"--game={game} is no Atari game")
    env = AtariVectorEnv(rom, num_envs, num_threads=1, repeat_action_probability=0.0)
    env.reset(seed=0)
    return env.step


def envpool(game: str, num_envs: int) -> Step:
    from envpool import make_gymnasium

    env = make_gymnasium(f"{game}-v5", num_envs=num_envs, num_threads=1, frame_skip=4, seed=0)
    env.reset()
    return lambda actions: env.step(actions.astype(np.int32))


EMULATORS: dict[str, Callable[[str, int], Step]] = {
    "sfrl": ours,
    "ale_py.AtariVectorEnv": ale_vector_env,
    "envpool": envpool,
}


def cpu_us_per_decision(step: Step, args: Args, rng: np.random.Generator, actions: int) -> float:
    """Of the whole process, native threads included."""
    start = time.process_time()
    for _ in range(args.steps):
        step(rng.integers(actions, size=args.envs))
    return (time.process_time() - start) / (args.steps * args.envs) * 1e6


def main(args: Args) -> None:
    (num_actions,) = envs.describe(args.game).actions.choices
    steps = {
        name: make(args.game, args.envs)
        for name, make in EMULATORS.items()
        if name != "envpool" or importlib.util.find_spec("envpool")
    }
    rng = np.random.default_rng(0)
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + args.windows):  # the first warms up
        for name, step in steps.items():
            seen[name].append(cpu_us_per_decision(step, args, rng, num_actions))
    medians = {name: statistics.median(of[1:]) for name, of in seen.items()}
    for name, us in medians.items():
        spread = f"{min(seen[name][1:]):.0f} - {max(seen[name][1:]):.0f}"
        print(f"{name:24} {us:6.0f} us per decision ({spread})")
    result = {"bench": "emulators", **machine(), **asdict(args), "us_per_decision": medians}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args))
