"""Atari 2600 games: ALE emulates, and screen.py makes the pictures, one game after the other.

The settings are the literature's (Mnih et al. 2015, Nature 518): a decision lasts
`frameskip` frames, the last two frames are max-pooled because many games draw a sprite only
every other frame, pictures are 84x84 grey, four of them are stacked, and an episode starts
with FIRE, where the game has that button, and up to 30 no-ops.

The stack is empty (zeros) before the first picture of an episode. When a game ends within a
decision, the rest of its frames are not drawn, so the final observation shows a moment up to one
decision old. Gymnasium's AtariPreprocessing gives the same final observation, unless the game ends
in the decision's last frame: it then takes the brighter pixels of that frame's picture and of an
old one, since it keeps the larger of both in place.

ALE's own vector env does the same work in C++ threads, in about 1.2 times the time: it converts
and resizes whole frames (docs/benchmarks.md). A rollout worker needs no threads: it is one of many
processes.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable
from functools import partial

import numpy as np
from ale_py import Action, ALEInterface, ALEState, LoggerMode, roms
from numpy.typing import NDArray

from sfrl.envs.options import EnvOptions
from sfrl.envs.screen import SIZE, make_screen
from sfrl.envs.vec_env import (
    OBS,
    Actions,
    ActionSpec,
    EnvSpec,
    EnvState,
    Leaf,
    Observations,
    StepResult,
    env_seeds,
)

FRAMESKIP = 4
CONSOLE_FPS = 60.0  # of the Atari 2600
OBS_SHAPE = (4, SIZE, SIZE)  # stacked pictures, height, width
LEAVES = (Leaf(OBS, "image", OBS_SHAPE, "uint8", scale=255.0, frames=OBS_SHAPE[0]),)
NOOP_MAX = 30
_MAX_REPLAY = 250_000  # frames of an episode that is saved: 10 s
_FRAMES_PER_S = 2_000  # that are played again at the very least; a usual core makes 25,000


class AtariVecEnv:
    """A `VecEnv` of one game; `game` is ALE's ROM id, such as "ms_pacman".

    Loading the ROM takes 0.1 s for every environment. `recv` emulates; it holds the GIL.

    With `episodic_life` a lost life is reported as `terminated`, and the game goes on: instead
    of a reset, the next step plays a no-op, whatever its action says, as Baselines'
    EpisodicLifeEnv does. `StepResult.over` says where a game ended: scores are those of whole
    games. Where FIRE serves the next ball it is the agent's to press, as when it plays for show.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        seed: int,
        options: EnvOptions,
        *,
        render: bool = False,
        stepping: NDArray[np.int64] | None = None,
    ) -> None:
        self._make_game = partial(Game.of, game, options, render)
        self._seeds = env_seeds(seed, num_envs)
        self.stepping = np.full(1, -1, np.int64) if stepping is None else stepping
        self._games = self._make_games()
        self._has_started = False
        self._obs = np.zeros((num_envs, *OBS_SHAPE), np.uint8)
        self._actions: list[int] = []
        self.num_envs = num_envs
        self.leaves: tuple[Leaf, ...] = LEAVES
        self.actions = _actions(self._games[0].ale)
        self.frameskip = options.frameskip or FRAMESKIP

    def reset(self) -> Observations:
        if self._has_started:  # ALE can be seeded only before it loads the ROM
            self._games = self._make_games()
        self._has_started = True
        for i, game in enumerate(self._games):
            self.stepping[0] = i
            game.restart(self._obs[i])
        self.stepping[0] = -1
        return {OBS: self._obs}

    def _make_games(self) -> list[Game]:
        games = []
        for i, seed in enumerate(self._seeds):
            self.stepping[0] = i
            games.append(self._make_game(seed))
        self.stepping[0] = -1
        return games

    def send(self, actions: Actions) -> None:
        self._actions = actions.tolist()
        (num_actions,) = self.actions.choices
        if min(self._actions) < 0 or max(self._actions) >= num_actions:
            raise ValueError(f"actions {self._actions} must lie in 0..{num_actions - 1}")

    def recv(self) -> StepResult:
        outcomes = []
        for i, game in enumerate(self._games):
            self.stepping[0] = i
            outcomes.append(game.step(self._actions[i], self._obs[i]))
        self.stepping[0] = -1
        rewards, terminated, truncated, over = zip(*outcomes, strict=True)
        return StepResult(
            {OBS: self._obs},
            np.array(rewards, np.float32),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
            np.array(over, np.bool_),
        )

    def episode_info(self, env: int) -> dict[str, float]:
        return {}

    def state(self) -> EnvState | None:
        if any(game.num_pressed > _MAX_REPLAY for game in self._games):
            return None
        games = [game.state() for game in self._games]
        return {"games": games, "obs": self._obs.copy(), "actions": self._actions}

    def load_state(self, state: EnvState) -> None:
        if self._has_started:
            self._games = self._make_games()
        pairs = list(zip(self._games, state["games"], strict=True))
        num_frames = sum(game.check_state(saved) for game, saved in pairs)

        def load() -> None:
            for game, saved in pairs:
                game.load_state(saved)

        if not _ends_well(load, 2.0 + num_frames / _FRAMES_PER_S):
            raise ValueError("a saved emulator's state is damaged: it cannot be played on")
        load()
        self._obs[:] = state["obs"]
        self._actions = state["actions"]
        self._has_started = True

    def render(self) -> NDArray[np.uint8]:
        return self._games[0].picture()

    def close(self) -> None:
        self._games = []


class Game:
    """One emulator and its stack of pictures, which lies in the caller's `obs` [4, 84, 84]."""

    _STATE = ("_is_over", "_lost_life", "_lives", "_num_frames")

    @classmethod
    def of(cls, game: str, options: EnvOptions, render: bool, seed: int) -> Game:
        """Raises ValueError: an option is out of range."""
        frameskip = FRAMESKIP if options.frameskip is None else options.frameskip
        sticky_actions, max_episode_frames = options.sticky_actions, options.max_episode_frames
        if frameskip < 1:
            raise ValueError(f"frameskip={frameskip} must be at least 1")
        if not 0 <= sticky_actions <= 1:
            raise ValueError(f"sticky_actions={sticky_actions} is a probability: 0 to 1")
        if max_episode_frames < 1:
            raise ValueError(f"max_episode_frames={max_episode_frames} must be at least 1")
        life = options.episodic_life
        return cls(game, frameskip, sticky_actions, life, max_episode_frames, render, seed)

    def __init__(
        self,
        game: str,
        frameskip: int,
        sticky_actions: float,
        episodic_life: bool,
        max_episode_frames: int,
        render: bool,
        seed: int,
    ) -> None:
        self.ale = load_rom(game, seed, sticky_actions)
        self._frameskip = frameskip
        self._sticky_actions = sticky_actions
        self._episodic_life = episodic_life
        self._max_episode_frames = max_episode_frames
        self._rng = np.random.default_rng(seed)  # of the no-ops; the game's own is in ALE
        self._buttons = [int(button.value) for button in self.ale.getMinimalActionSet()]
        fire = int(Action.FIRE.value)
        self._fire = fire if fire in self._buttons else int(Action.NOOP.value)
        self._frame = np.empty(self.ale.getScreenDims(), np.uint8)
        self._screen = make_screen(*self._frame.shape)
        self._colored = np.zeros((2, *self._frame.shape, 3), np.uint8) if render else None
        self._is_over = False  # the next step starts an episode
        self._lost_life = False  # the next step plays a no-op
        self._lives = 0
        self._num_frames = 0  # of this episode
        self._start = ALEState()  # after its reset
        self._pressed = bytearray()  # a button for each frame since

    def restart(self, obs: NDArray[np.uint8]) -> None:
        """Start an episode."""
        self.ale.reset_game()
        self._start, self._pressed = self.ale.cloneState(include_rng=True), bytearray()
        for button in [self._fire] + [0] * int(self._rng.integers(1, NOOP_MAX + 1)):
            self._press(button)
        self._capture(0)
        self._capture(1)
        obs[:-1] = 0
        self._screen.draw(obs[-1])
        self._is_over = self._lost_life = False
        self._lives = self.ale.lives()
        self._num_frames = 0

    def step(self, action: int, obs: NDArray[np.uint8]) -> tuple[int, bool, bool, bool]:
        """One decision, or the restart that follows an episode's end.

        Returns:
            The reward, whether the episode is terminated or truncated, whether the game is over.
        """
        if self._is_over:
            self.restart(obs)
            return 0, False, False, False
        ale, skip = self.ale, self._frameskip
        button = 0 if self._lost_life else self._buttons[action]
        reward = 0
        terminated = False
        for frame in range(1, skip + 1):
            reward += self._press(button)
            terminated = ale.game_over()
            if terminated:
                break
            # The last but one is frame 1: where a game ends in the last, it meets the older 0.
            if frame == skip - 1 or skip == 1:
                self._capture(1)
            if frame == skip:
                self._capture(0)
        obs[:-1] = obs[1:]
        self._screen.draw(obs[-1])
        self._num_frames += skip
        truncated = not terminated and self._num_frames >= self._max_episode_frames
        self._is_over = terminated or truncated
        lives, lost_life = ale.lives(), self._lost_life
        # Some games show 0 lives for a while before they are over.
        self._lost_life = self._episodic_life and 0 < lives < self._lives and not lost_life
        self._lives = lives
        is_over = self._is_over
        if lost_life:  # this row only plays on
            if is_over:
                self.restart(obs)
            return reward, False, False, is_over
        return reward, terminated or self._lost_life, truncated, is_over

    def state(self) -> EnvState:
        return {
            "start": np.frombuffer(self._start.serialize(), np.uint8),
            "buttons": np.frombuffer(bytes(self._pressed), np.uint8),
            "rng": self._rng.bit_generator.state,
            "sticky_actions": self._sticky_actions,
            **{name: getattr(self, name) for name in self._STATE},
        }

    @property
    def num_pressed(self) -> int:
        """Frames since the last reset."""
        return len(self._pressed)

    def check_state(self, state: EnvState) -> int:
        """The number of frames that `load_state` plays. Raises ValueError unless it may do so."""
        buttons, saved = state["buttons"], state.get("sticky_actions", self._sticky_actions)
        if saved != self._sticky_actions:
            raise ValueError(
                f"its games had sticky_actions={saved}; with {self._sticky_actions} they would not "
                "be the same when they are played again"
            )
        if not 0 < buttons.size <= _MAX_REPLAY:
            raise ValueError(f"an episode of {buttons.size} frames cannot be played again")
        if not np.isin(buttons, self._buttons).all():
            raise ValueError("a saved episode has buttons that the game has not")
        return int(buttons.size)

    def load_state(self, state: EnvState) -> None:
        """Play the episode again, at 0.2 s for 5,000 frames. For an emulator that is as loaded.

        ALE's state does not hold all of the machine's: restored within an episode it may differ by
        the next frame, restored right after a reset it does not (docs/experiments.md).
        """
        start = ALEState.__new__(ALEState)
        start.__setstate__(state["start"].tobytes())
        self.ale.restoreState(start)
        self._start, self._pressed = start, bytearray()
        buttons = state["buttons"].tolist()
        for button in buttons[:-1]:
            self._press(button)
        self._capture(1)
        self._press(buttons[-1])
        self._capture(0)
        if state["_num_frames"] == 0 or self._frameskip == 1:
            self._capture(1)
        self._rng.bit_generator.state = state["rng"]
        for name in self._STATE:
            setattr(self, name, state[name])

    def picture(self) -> NDArray[np.uint8]:
        """[height, width, 3], pooled from the same two frames as the agent's."""
        if self._colored is None:
            raise RuntimeError("render() needs make_vec_env(..., render=True)")
        picture: NDArray[np.uint8] = self._colored.max(axis=0)
        return picture

    def _press(self, button: int) -> int:
        """The reward of a frame with this button."""
        self._pressed.append(button)
        return self.ale.act(button)

    def _capture(self, which: int) -> None:
        """Take the screen of now as frame `which` of the next picture."""
        self.ale.getScreen(self._frame)
        if not self._screen.set_frame(which, self._frame):
            self._screen.learn_colors(self._frame, self.ale.getScreenGrayscale())
            self._screen.set_frame(which, self._frame)
        if self._colored is not None:
            self.ale.getScreenRGB(self._colored[which])


def _ends_well(work: Callable[[], None], limit_s: float) -> bool:
    """Whether a fork of this process does the work within this processor time, without an error.

    The emulator believes the state that it is given: some of those that are damaged have it raise
    errors of any kind, others never come back.
    """
    if (child := os.fork()) == 0:
        code = 1
        try:
            limit = math.ceil(limit_s)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # then the kernel kills it
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where the emulator tells of it
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def describe_atari(game: str, frameskip: int | None = None) -> EnvSpec:
    """The spec of a game by its ROM id, from the ROM alone (0.1 s)."""
    return EnvSpec("atari", LEAVES, _actions(load_rom(game)), frameskip or FRAMESKIP)


def action_names(game: str) -> list[str]:
    """Of its minimal set, by its ROM id."""
    return [button.name for button in load_rom(game).getMinimalActionSet()]


def _actions(ale: ALEInterface) -> ActionSpec:
    return ActionSpec(choices=(len(ale.getMinimalActionSet()),))


def load_rom(game: str, seed: int = 0, sticky_actions: float = 0.0) -> ALEInterface:
    """An emulator with the game in it, by its ROM id."""
    ALEInterface.setLoggerMode(LoggerMode.Error)  # else ALE prints a banner
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", sticky_actions)
    rom_path = roms.get_rom_path(game)
    assert rom_path is not None, f"{game} is no ROM id"
    ale.loadROM(rom_path)
    return ale
