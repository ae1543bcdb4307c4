"""Policies that nobody has trained, whose decisions depend on what they see."""

import torch

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.policy import Policy
from sfrl.settings.algorithms import make_config
from sfrl.settings.config import Config


def fresh_policy(seed: int = 0, **settings: object) -> Policy:
    """With random weights, also where they begin as 0 or small; `settings` as `make_config`."""
    config = make_config({"frameskip": 1, **settings})
    return Policy(config, weights_of(config, seed), seed=seed)


def weights_of(config: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    spec = envs.describe(config.env, config.env_options)
    model = make_algorithm(config, spec).make_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(
                head in name for head in ("policy_head.weight", "head.weight", "actor.4.weight")
            ):
                weight.mul_(30)
            elif weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
        for name, buffer in model.named_buffers():
            if name.startswith("normalizers.") and name.endswith(".mean"):
                buffer.add_(0.2 * torch.randn_like(buffer))
            if name.startswith("normalizers.") and name.endswith(".variance"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
    return model.state_dict()
