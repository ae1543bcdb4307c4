"""Algorithms: how they act, and what they learn from. Their settings are in sfrl/settings/."""

from sfrl.algorithms.actor_critic import ActorCritic
from sfrl.algorithms.algorithm import Algorithm as Algorithm
from sfrl.algorithms.dqn import DQN
from sfrl.algorithms.n_step_q import NStepQ
from sfrl.algorithms.sac import SAC
from sfrl.envs import EnvSpec
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.config import Config
from sfrl.settings.dqn import DQNConfig
from sfrl.settings.n_step_q import NStepQConfig
from sfrl.settings.sac import SACConfig


def make_algorithm(config: Config, env: EnvSpec) -> Algorithm:
    """That of the run, in an environment that looks like `env`."""
    match config:
        case ActorCriticConfig():
            return ActorCritic(config, env)
        case NStepQConfig():
            return NStepQ(config, env)
        case DQNConfig():
            return DQN(config, env)
        case SACConfig():
            return SAC(config, env)
    raise TypeError(f"{type(config).__name__} belongs to no algorithm")
