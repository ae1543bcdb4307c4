"""Atari 2600 games through ALE's own vector env: emulation and preprocessing in C++ threads.

The settings are the literature's (Mnih et al. 2015, Nature 518): a decision lasts
`frameskip` frames, the last two frames are max-pooled because many games draw a sprite only
every other frame, pictures are 84x84 grey, four of them are stacked, and an episode starts
with FIRE, where the game has that button, and up to 28 no-ops.

The stack is empty (zeros) before the first picture of an episode. When an episode ends or is
cut off, its last picture is not captured, so the final observation shows a moment up to one
decision old; Gymnasium's AtariPreprocessing does the same.
"""

import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.vec_env import EnvSpec, ObsArray, StepResult, env_seeds

FRAMESKIP = 4
OBS_SHAPE = (4, 84, 84)  # stacked pictures, height, width
NOOP_MAX = 30


class AtariVecEnv:
    """A `VecEnv` of one game; `game` is ALE's ROM id, such as "ms_pacman".

    `send` hands the actions to `num_threads` C++ threads and returns; they do not need the GIL.
    ALE loads a ROM in 0.1 s and, to seed it, twice: making and the first reset together take
    0.2 s per environment (and per core).

    With `episodic_life` a lost life is reported as `terminated`, and the game goes on: instead
    of a reset, the next step plays FIRE (a no-op where the game has no FIRE), whatever its
    action says, as Baselines' EpisodicLifeEnv and FireResetEnv do. The rewards between two
    ends are then the score of one life, not of a game. ALE's own `episodic_life` is not used:
    it restarts the whole game, so that the agent would never see what follows its first life.

    With `render` the same game runs a second time, in lockstep, as a camera: same seed, same
    actions, colour pictures of full size. The vector env itself can't draw, and this way
    whoever watches sees the very observations of training at work.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        seed: int,
        *,
        num_threads: int = 1,
        frameskip: int = FRAMESKIP,
        sticky_actions: float = 0.0,
        episodic_life: bool = False,
        max_episode_frames: int = 108_000,
        render: bool = False,
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads={num_threads} must be at least 1")
        if frameskip < 1:
            raise ValueError(f"frameskip={frameskip} must be at least 1")
        if not 0 <= sticky_actions <= 1:
            raise ValueError(f"sticky_actions={sticky_actions} is a probability: 0 to 1")
        if max_episode_frames < 1:
            raise ValueError(f"max_episode_frames={max_episode_frames} must be at least 1")

        def make_view(height: int, width: int, stack: int, grayscale: bool) -> AtariVectorEnv:
            return AtariVectorEnv(
                game,
                num_envs,
                batch_size=num_envs,  # all of them: results come in the order of the envs
                num_threads=num_threads,
                max_num_frames_per_episode=max_episode_frames,
                repeat_action_probability=sticky_actions,
                autoreset_mode=AutoresetMode.NEXT_STEP,
                img_height=height,
                img_width=width,
                grayscale=grayscale,
                stack_num=stack,
                frameskip=frameskip,
                maxpool=True,
                noop_max=NOOP_MAX,
                use_fire_reset=True,
                life_loss_info=episodic_life,
                reward_clipping=False,
            )

        stack, height, width = OBS_SHAPE
        self._views = [make_view(height, width, stack, grayscale=True)]
        if render:
            height, width = load_rom(game).getScreenDims()
            self._views.append(make_view(height, width, 1, grayscale=False))
        buttons = self._views[0].ale.get_action_set()

        self.num_envs = num_envs
        self.observation_space: Box = Box(0, 255, OBS_SHAPE, np.uint8)
        self.action_space = Discrete(len(buttons))
        self.frameskip = frameskip
        self._num_actions = len(buttons)
        self._seeds = np.array(env_seeds(seed, num_envs))
        self._paddle_strengths = [1.0] * num_envs
        self._episodic_life = episodic_life
        self._restart_action = buttons.index(Action.FIRE) if Action.FIRE in buttons else 0
        self._ended = np.zeros(num_envs, np.bool_)  # [N] the next row restarts
        self._picture: NDArray[np.uint8] | None = None  # [H, W, 3]

    def reset(self) -> ObsArray:
        (obs, info), *camera = [view.reset(seed=self._seeds) for view in self._views]
        self._ended = np.zeros(self.num_envs, np.bool_)
        for pictures, camera_info in camera:
            self._check_lockstep(
                [info["episode_frame_number"]], [camera_info["episode_frame_number"]]
            )
            self._picture = pictures[0, 0]
        stacks: ObsArray = obs
        return stacks

    def send(self, actions: NDArray[np.int64]) -> None:
        if self._episodic_life:
            actions = np.where(self._ended, self._restart_action, actions)
        # Lists, for ALE converts element by element: 13 us for 16 envs, against 24 us from
        # arrays and 68 us through AtariVectorEnv.send. (ALE's type stub knows arrays only.)
        action_list = actions.tolist()
        # ALE's worker thread would drop a bad action without a result: recv would hang.
        if min(action_list) < 0 or max(action_list) >= self._num_actions:
            raise ValueError(f"actions {action_list} must lie in 0..{self._num_actions - 1}")
        for view in self._views:
            view.ale.send(action_list, self._paddle_strengths)  # type: ignore[arg-type]

    def recv(self) -> StepResult:
        (obs, rewards, terminated, truncated, info), *camera = [
            view.ale.recv() for view in self._views
        ]
        for pictures, *outcome, camera_info in camera:
            self._check_lockstep(
                [rewards, terminated, truncated, info["episode_frame_number"]],
                [*outcome, camera_info["episode_frame_number"]],
            )
            self._picture = pictures[0, 0]
        rewards = rewards.astype(np.float32)
        if self._episodic_life:
            rewards[self._ended] = 0
            self._ended = terminated | truncated
        return StepResult(obs, rewards, terminated, truncated)

    def render(self) -> NDArray[np.uint8]:
        if self._picture is None:
            raise RuntimeError("render() needs make_vec_env(..., render=True) and a reset() first")
        return self._picture

    def close(self) -> None:
        self._views.clear()  # ALE joins its threads when the object goes

    def _check_lockstep(
        self, agent: list[NDArray[np.generic]], camera: list[NDArray[np.generic]]
    ) -> None:
        if not all(map(np.array_equal, agent, camera)):
            raise RuntimeError(
                f"the camera's game is no longer the agent's: {agent} against {camera} "
                "(rewards, terminated, truncated, frame number)"
            )


def describe_atari(game: str, frameskip: int = FRAMESKIP) -> EnvSpec:
    """The spec of a game by its ROM id, from the ROM alone (0.1 s)."""
    num_actions = len(load_rom(game).getMinimalActionSet())
    return EnvSpec("atari", OBS_SHAPE, "uint8", num_actions, frameskip)


def load_rom(game: str) -> ALEInterface:
    """A bare emulator with the game in it."""
    ALEInterface.setLoggerMode(LoggerMode.Error)  # else ALE prints a banner
    ale = ALEInterface()
    rom_path = roms.get_rom_path(game)
    assert rom_path is not None, f"{game} is no ROM id"
    ale.loadROM(rom_path)
    return ale
