"""An environment of your own, and a run that learns it: python own_environment.py

A courier on a grid of 5x5 fetches a parcel, which lies somewhere else in each episode, and brings
it to the door in a corner. docs/tutorials/own-environment.md goes through it.
"""

import argparse

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from sfrl import train

SIZE = 5
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right
DOOR = np.array([0, 0])
PIXELS = 32  # of a cell's side, in films


class Courier(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, render_mode=None):
        # Where the courier is, where the parcel is, and whether it is carried: all in 0..1.
        self.observation_space = Box(0.0, 1.0, (5,), np.float32)
        self.action_space = Discrete(len(MOVES))
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # makes self.np_random, the only source of chance here
        self.courier, self.parcel = self.np_random.integers(SIZE, size=(2, 2))
        self.carries = False
        return self._observation(), {}

    def step(self, action):
        self.courier = np.clip(self.courier + MOVES[action], 0, SIZE - 1)
        self.carries = self.carries or bool((self.courier == self.parcel).all())
        if self.carries:
            self.parcel = self.courier
        delivered = self.carries and bool((self.courier == DOOR).all())
        reward = 1.0 if delivered else -0.01  # a little is lost with each step: hurry
        return self._observation(), reward, delivered, False, {"is_success": delivered}

    def _observation(self):
        places = np.concatenate([self.courier, self.parcel]) / (SIZE - 1)
        return np.append(places, self.carries).astype(np.float32)

    def render(self):
        cells = np.full((SIZE, SIZE, 3), 235, np.uint8)
        cells[tuple(DOOR)] = (120, 170, 120)
        cells[tuple(self.parcel)] = (230, 150, 60)
        cells[tuple(self.courier)] = (200, 90, 60) if self.carries else (70, 100, 200)
        return cells.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)


# An episode is cut off after 100 steps. Cut off is not over: the learner counts on from there.
gymnasium.register("Courier-v0", Courier, max_episode_steps=100)

# Workers import this module for the environment. Without this line they would train as well.
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    frames = parser.parse_args().frames
    # For so short a run the defaults will do: measuring the machine would take as long.
    summary = train(env="own_environment:Courier-v0", train_frames=frames, tune="off")
    print(f"score {summary.episode_return_mean} after {summary.seconds:.0f} s: {summary.run_dir}")
