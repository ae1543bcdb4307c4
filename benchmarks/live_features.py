"""How many features of a run's NatureCNN are alive: above 0 on any of some observations.

    python -m benchmarks.live_features runs/Breakout-20261121-040000

The observations are the game's under random actions. A feature that is 0 on all of them has most
likely died: no gradient reaches it any more. One line per layer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import envs
from sfrl import checkpoint
from sfrl.config import Config
from sfrl.encoders import NatureCNN
from sfrl.model import make_model

NUM_ENVS, NUM_STEPS, FIRST_STEP = 4, 60, 10


@dataclass(frozen=True, kw_only=True)
class Args:
    run_dir: Annotated[Path, tyro.conf.Positional]
    """The folder of a run; its newest checkpoint is read."""


def observations(env: str) -> Tensor:
    """uint8 [B, *obs_shape] under random actions."""
    vec_env = envs.make_vec_env(env, NUM_ENVS, seed=0)
    vec_env.reset()
    rng, seen = np.random.default_rng(0), []
    for _ in range(NUM_STEPS):
        vec_env.send(rng.integers(vec_env.action_space.n, size=NUM_ENVS))
        seen.append(vec_env.recv().obs.copy())
    vec_env.close()
    return torch.from_numpy(np.concatenate(seen[FIRST_STEP:]))


@torch.no_grad()
def live_features(encoder: NatureCNN, obs: Tensor) -> dict[str, tuple[int, int]]:
    """Layer -> how many of its features are above 0 on any observation, of how many."""
    outputs: dict[str, Tensor] = {}  # [rows, features], behind the relu
    layers = [name for name, _ in encoder.named_children()]
    for name, following in itertools.pairwise(layers):
        filters = getattr(encoder, name).out_channels

        def keep(_: nn.Module, args: tuple[Tensor], name: str = name, n: int = filters) -> None:
            x = args[0].movedim(1, -1) if args[0].ndim == 4 else args[0]  # channels come last
            outputs[name] = x.reshape(-1, n)

        getattr(encoder, following).register_forward_pre_hook(keep)
    outputs[layers[-1]] = encoder(obs, torch.float32)
    return {name: (int((x.amax(0) > 0).sum()), x.shape[1]) for name, x in outputs.items()}


def main(args: Args) -> None:
    state = checkpoint.load_latest(args.run_dir).state
    config = Config(**state["config"])
    spec = envs.describe(config.env, config.frameskip)
    model = make_model(
        config.model, spec.obs_shape, spec.num_actions, obs_is_image=True, rnn_size=config.rnn_size
    )
    model.load_state_dict(state["model"])
    encoder = model.encoder
    if not isinstance(encoder, NatureCNN):
        raise SystemExit(f"{args.run_dir} has --model={config.model}; this needs nature_cnn")
    print(f"{config.env}, {state['counters']['env_steps']:,} decisions")
    for name, (alive, count) in live_features(encoder, observations(config.env)).items():
        print(f"{name:8} {alive:4} of {count} alive")


if __name__ == "__main__":
    main(tyro.cli(Args))
