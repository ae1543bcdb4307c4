"""Algorithms: how they act, and what they learn from. Their settings are in sfrl/settings/."""

from sfrl.algorithms.actor_critic import ActorCritic
from sfrl.algorithms.algorithm import Algorithm as Algorithm
from sfrl.envs import EnvSpec
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.config import Config


def make_algorithm(config: Config, env: EnvSpec) -> Algorithm:
    """That of the run, in an environment that looks like `env`."""
    match config:
        case ActorCriticConfig():
            return ActorCritic(config, env)
    raise TypeError(f"algorithm={config.algorithm} has no networks")
