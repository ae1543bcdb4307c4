"""A network of your own, and a run that trains it: python own_network.py

docs/tutorials/own-network.md goes through it.
"""

import argparse

import torch
from torch import nn

from sfrl import train
from sfrl.nets.encoders import LayerNorm


class Block(nn.Module):
    """Features [B, size] plus what two layers make of them."""

    def __init__(self, size):
        super().__init__()
        self.layers = nn.Sequential(
            LayerNorm(size), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size)
        )

    def forward(self, features):
        return features + self.layers(features)


class ResidualMLP(nn.Module):
    """Observations [B, D] become features [B, 64]. Policy and value heads are put on top of it."""

    def __init__(self, obs_shape):
        super().__init__()
        self.first = nn.Linear(obs_shape[0], 64)
        self.blocks = nn.Sequential(Block(64), Block(64))
        self.last = LayerNorm(64)

    def forward(self, obs):
        return torch.relu(self.last(self.blocks(self.first(obs))))


# Workers import this module for the network. Without this line they would train as well.
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    summary = train(
        env="CartPole-v1",
        model="own_network:ResidualMLP",
        train_frames=parser.parse_args().frames,
        tune="off",  # measuring the machine would take as long as so short a run
    )
    print(f"score {summary.episode_return_mean} after {summary.seconds:.0f} s: {summary.run_dir}")
