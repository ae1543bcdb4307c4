"""CartPole in Sample Factory, faulty once $FAULT_FILE exists; Sample Factory's interpreter runs it.

The file names the fault. It strikes one environment: the second of the first worker.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import run_rl

FAULT_FILE = Path(os.environ["FAULT_FILE"])


class Faulty(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        fault = FAULT_FILE.read_text() if FAULT_FILE.exists() else ""
        observation, reward, *rest = super().step(action)
        match fault:
            case "raise":
                raise RuntimeError("the pole broke")
            case "exit":
                os._exit(1)
            case "hang":
                time.sleep(3600)
            case "slow":
                time.sleep(0.1)
            case "helper" if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            case "helper":
                os._exit(1)
            case "nan-reward":
                reward = float("nan")
            case "nan-observation":
                observation = observation * float("nan")
            case "short-observation":
                observation = observation[:2]
        return observation, reward, *rest


class NeverWorks(CartPoleEnv):
    def reset(self, **kwargs: object) -> Any:
        raise RuntimeError("there is no pole")


def make_env(
    name: str, cfg: object = None, env_config: Any = None, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    if name == "never_works":
        return NeverWorks()
    env = gymnasium.make("CartPole-v1")
    place = (env_config.worker_index, env_config.vector_index) if env_config else None
    return Faulty(env) if place == (0, 1) else env


if __name__ == "__main__":
    for name in ("cartpole", "never_works"):
        register_env(name, make_env)
    parser, _ = parse_sf_args()
    sys.exit(run_rl(parse_full_cfg(parser)))
