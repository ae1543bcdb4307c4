"""An Atari game as a Gymnasium environment: what agents see in training, for loops of one's own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from sfrl.envs.atari import CONSOLE_FPS, FRAMESKIP, OBS_SHAPE, Game, action_names
from sfrl.envs.options import EnvOptions


class AtariEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One game, by ALE's ROM id. Observations are stacks of four pictures, [4, 84, 84] uint8.

    Actions are the game's minimal set, as in "ALE/Pong-v5".
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # Gymnasium's own declaration

    def __init__(self, game: str, options: EnvOptions, *, render_mode: str | None = None) -> None:
        """Raises ValueError: there is no such render_mode."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode={render_mode!r} must be 'rgb_array' or None for an Atari game"
            )
        frameskip = options.frameskip or FRAMESKIP
        self.metadata = {**self.metadata, "render_fps": CONSOLE_FPS / frameskip}
        self.render_mode = render_mode
        self.observation_space = Box(0, 255, OBS_SHAPE, np.uint8)
        self.action_space = Discrete(len(action_names(game)))
        self._name, self._options = game, options
        self._game: Game | None = None
        self._obs = np.zeros(OBS_SHAPE, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        if self._game is None or seed is not None:  # ALE is seeded when it loads the ROM: 0.1 s
            render = self.render_mode is not None
            own_seed = int(self.np_random.integers(2**31))
            self._game = Game.of(self._name, self._options, render, own_seed)
        self._game.restart(self._obs)
        return self._obs.copy(), {}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r:.60} must lie in {self.action_space}")
        reward, terminated, truncated, _ = self._playing().step(int(action), self._obs)
        return self._obs.copy(), float(reward), terminated, truncated, {}

    def render(self) -> Any:
        return None if self.render_mode is None else self._playing().picture()

    def get_action_meanings(self) -> list[str]:
        """The buttons' names, as ALE's own environment has them."""
        return action_names(self._name)

    def close(self) -> None:
        self._game = None

    def _playing(self) -> Game:
        if self._game is None:
            raise gymnasium.error.ResetNeeded("call reset() before step() and render()")
        return self._game
