"""How many features of a run's NatureCNN are alive: above 0 on any of some observations.

    python -m benchmarks.live_features runs/Breakout-20261121-040000

The observations are the game's under random actions. A feature that is 0 on all of them has most
likely died: no gradient reaches it any more. One line per layer.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from sfrl.envs import OBS, random_actions
from sfrl.nets.encoders import NatureCNN
from sfrl.records import checkpoint
from sfrl.settings.algorithms import config_from
from sfrl.settings.config import Config
from sfrl.show.player import Player, make_env

NUM_STEPS, FIRST_STEP = 240, 40


@dataclass(frozen=True, kw_only=True)
class Args:
    run_dir: Annotated[Path, tyro.conf.Positional]
    """The folder of a run; its newest checkpoint is read."""


def observations(config: Config) -> Tensor:
    """uint8 [B, C, H, W] under random actions."""
    rng, seen = np.random.default_rng(0), []
    with closing(make_env(config, seed=0, render=False)) as env:
        obs = env.reset()
        for _ in range(NUM_STEPS):
            env.send(random_actions(env.actions, obs, rng))
            obs = env.recv().obs
            seen.append(obs[OBS].copy())
    return torch.from_numpy(np.concatenate(seen[FIRST_STEP:]))


@torch.no_grad()
def live_features(encoder: NatureCNN, obs: Tensor) -> dict[str, tuple[int, int]]:
    """Layer -> how many of its features are above 0 on any observation, of how many."""
    convolutions = [name for name, _ in encoder.named_children() if name.startswith("conv")]
    inputs: list[Tensor] = []  # of every layer but the first: what came out of the one before
    for layer in list(encoder.children())[1:]:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    features = encoder(obs, torch.float32)
    found = {}
    for name, x in zip(convolutions, inputs, strict=True):
        pixels = x.movedim(1, -1) if x.ndim == 4 else x  # channels last, as the linear layer's are
        found[name] = pixels.reshape(-1, len(encoder.get_parameter(f"{name}.bias")))
    found["linear"] = features
    return {name: (int((x.amax(0) > 0).sum()), x.shape[1]) for name, x in found.items()}


def main(args: Args) -> None:
    state, path = checkpoint.load_latest(args.run_dir)
    config = config_from(state["config"], str(path))
    encoder = Player(config, state["model"], seed=0).policy.model.encoder
    if not isinstance(encoder, NatureCNN):
        raise SystemExit(
            f"{path} has --model={config.model}; this needs a3c_cnn, nature_cnn or pooled_cnn"
        )
    print(f"{config.env}, {state['counters']['env_steps']:,} decisions")
    for name, (alive, count) in live_features(encoder, observations(config)).items():
        print(f"{name:8} {alive:4} of {count} alive")


if __name__ == "__main__":
    main(tyro.cli(Args))
