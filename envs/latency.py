"""Latency-v0: CartPole whose steps wait, as those of a simulator elsewhere or of a robot do.

To see what waiting costs a trainer, and threads (--threads-per-worker) save.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.typing import NDArray

_TAIL = 2.0  # of the Pareto distribution: its mean is finite, its variance is not


class Latency(CartPoleEnv):
    """CartPole-v1; each step sleeps.

    Args:
        mean_ms: for how long on average.
        heavy_tail: by Pareto's distribution: mostly half of that, now and then much longer. Else
            every step sleeps as long.
    """

    def __init__(
        self, mean_ms: float = 5.0, heavy_tail: bool = False, render_mode: str | None = None
    ) -> None:
        if not 0 <= mean_ms < 1e6:
            raise ValueError(f"mean_ms={mean_ms} must lie between 0 and 1e6")
        super().__init__(render_mode=render_mode)
        self._mean_s = mean_ms / 1e3
        self._heavy_tail = heavy_tail
        self._delays = np.random.default_rng(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        if seed is not None:
            self._delays = np.random.default_rng([seed, 1])  # other numbers than np_random's
        obs, info = super().reset(seed=seed, options=options)
        return obs, info

    def step(
        self, action: int | NDArray[Any]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        delay_s = self._mean_s
        if self._heavy_tail:  # NumPy's begins at 0, and has a mean of 1 / (tail - 1)
            delay_s *= (1 - 1 / _TAIL) * (1 + self._delays.pareto(_TAIL))
        time.sleep(delay_s)
        obs, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return obs, reward, terminated, truncated, info
