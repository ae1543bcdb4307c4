"""Environments for tests, registered at import: `--env=tests.tiny_envs:Catch-v0`."""

import contextlib
import multiprocessing
import os
import time

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.wrappers import NormalizeObservation
from numpy.typing import NDArray


class Catch(gymnasium.Env):
    """A ball falls from the top row; a paddle in the bottom row moves left, stays or moves right.

    The reward is 1 if the ball falls on the paddle and -1 if not, at the episode's ninth and last
    step. bsuite's Catch (Osband et al. 2020, arXiv:1908.03568), as an image.
    """

    ROWS, COLUMNS = 10, 5

    def __init__(self):
        self.observation_space = Box(0, 255, (self.ROWS, self.COLUMNS), np.uint8)
        self.action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball_row, self.paddle = 0, self.COLUMNS // 2
        self.ball_column = int(self.np_random.integers(self.COLUMNS))
        return self._picture(), {}

    def step(self, action):
        self.ball_row += 1
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.COLUMNS - 1)
        is_over = self.ball_row == self.ROWS - 1
        reward = (1.0 if self.ball_column == self.paddle else -1.0) if is_over else 0.0
        return self._picture(), reward, is_over, False, {}

    def _picture(self):
        picture = np.zeros((self.ROWS, self.COLUMNS), np.uint8)
        picture[self.ball_row, self.ball_column] = 255
        picture[-1, self.paddle] = 255
        return picture


class Planes(Catch):
    """Catch as seven planes of 0 and 1, which tells in `info` whether the ball was caught."""

    def __init__(self):
        super().__init__()
        self.observation_space = Box(0, 1, (self.ROWS, self.COLUMNS, 7), np.bool_)

    def _picture(self):
        return np.repeat(super()._picture()[..., np.newaxis] > 0, 7, axis=2)

    def step(self, action):
        picture, reward, is_over, truncated, _ = super().step(action)
        return picture, reward, is_over, truncated, {"is_success": reward > 0, "note": "x"}


class Point(gymnasium.Env):
    """A point on a line, pushed left, not at all, or right; the reward is minus its distance to 0.

    Beyond 3 the episode ends, which at once costs less (-41) than random pushes for 100 steps do
    (-76): a policy that runs ahead of its critic learns to leave. Staying near 0 costs 6.
    """

    def __init__(self):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.speed = self.np_random.uniform(-1, 1), 0.0
        return self._observation(), {}

    def step(self, action):
        self.speed += 0.05 * (int(action) - 1)
        self.position += 0.1 * self.speed
        distance = abs(self.position)
        return self._observation(), -distance, distance > 3, False, {}

    def _observation(self):
        return np.array([self.position, self.speed], np.float32)


class LateReward(gymnasium.Env):
    """Which of two lights is on? One step long. Answers pay nothing at first, then 1, then 1,000.

    What they pay depends on how many steps this copy has made: nothing for `PHASE` of them, then
    1 for a right answer as long, then 1,000.
    """

    PHASE = 1000

    def __init__(self):
        self.observation_space = Box(0.0, 1.0, (2,), np.float32)
        self.action_space = Discrete(2)
        self.num_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.light = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.light], {}

    def step(self, action):
        self.num_steps += 1
        pay = (0.0, 1.0, 1000.0)[min(self.num_steps // self.PHASE, 2)]
        is_right = int(action) == self.light
        return np.zeros(2, np.float32), pay * is_right, True, False, {}


class Ledger(gymnasium.Env):
    """Each observation tells which environment made it, when, and after what action.

    Columns: the environment's seed in two halves (float32 holds 24 bits), episode, step, and the
    action that led here, -1 at an episode's first. `successor` has the whole dynamics, so that a
    test can tell from any row what the next one must be.
    """

    COLUMNS = 5

    def __init__(self):
        self.observation_space = Box(-np.inf, np.inf, (self.COLUMNS,), np.float32)
        self.action_space = Discrete(7)
        self.row = np.zeros(self.COLUMNS, np.float32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.row = np.array([seed >> 16, seed & 0xFFFF, 0, 0, -1], np.float32)
        else:
            self.row = _next_episode(self.row)
        return self.row, {}

    def step(self, action):
        assert not is_final(self.row), "the step after an episode must be a reset"
        self.row, reward, terminated, truncated = successor(self.row, np.asarray(action))
        return self.row, float(reward), bool(terminated), bool(truncated), {}


class UnevenLedger(Ledger):
    """Ledger at 0.3 ms a step; in the process that first claims the file $SLOW_CLAIM, at 30 ms."""

    def __init__(self):
        super().__init__()
        self.step_s = 3e-4
        claim = os.environ.get("SLOW_CLAIM")
        if claim and multiprocessing.parent_process():  # the trainer only looks at it
            with contextlib.suppress(FileExistsError):
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
                self.step_s *= 100

    def step(self, action):
        time.sleep(self.step_s)
        return super().step(action)


def successor(
    rows: NDArray[np.float32],  # [..., 5]
    actions: NDArray[np.int64],  # [...]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """What NEXT_STEP makes of Ledger's rows: next rows [..., 5], rewards, terminated, truncated.

    A reward names its environment, episode, step and action. Episodes with an even number are
    truncated, the others terminated.
    """
    stepped = rows.copy()
    stepped[..., 3] += 1
    stepped[..., 4] = actions
    was_final = is_final(rows)
    next_rows = np.where(was_final[..., None], _next_episode(rows), stepped)
    names = rows[..., 1] + 7 * rows[..., 2] + 31 * rows[..., 3] + 0.125 * (1 + actions)
    ends = ~was_final & is_final(stepped)
    is_even = rows[..., 2] % 2 == 0
    rewards = np.where(was_final, 0, names).astype(np.float32)
    return next_rows, rewards, ends & ~is_even, ends & is_even


def is_final(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether rows [..., 5] are their episodes' last: after 2 to 12 steps, varying by episode."""
    return rows[..., 3] == 2 + (rows[..., 1] + 3 * rows[..., 2]) % 11


def _next_episode(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    first_rows = rows.copy()
    first_rows[..., 2] += 1
    first_rows[..., 3] = 0
    first_rows[..., 4] = -1
    return first_rows


class Guess(gymnasium.Env):
    """An opponent draws from the action space: the reward is 1 if it draws the same action.

    The observation means nothing, and is drawn too. Ten steps long.
    """

    observation_space = Box(-1, 1, (3,), np.float32)  # one for all copies
    num_steps = 0

    def __init__(self):
        self.action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.num_steps += 1
        reward = float(action == self.action_space.sample())
        return self.observation_space.sample(), reward, self.num_steps == 10, False, {}


class Shows(gymnasium.Env):
    """Shows a red picture in the layout that `kind` names. Five steps long."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Discrete(2)

    def __init__(self, kind, render_mode=None):
        self.kind = kind
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.num_steps += 1
        return np.zeros(3, np.float32), 1.0, self.num_steps == 5, False, {}

    def render(self):
        rgba = np.full((30, 47, 4), (255, 0, 0, 9), np.uint8)
        rgb = rgba[..., :3]
        kinds = {
            "rgb": rgb,
            "rgba": rgba,
            "float": rgb / 255,
            "int64": rgb.astype(np.int64),
            "channels_first": rgb.transpose(2, 0, 1),
            "grey": np.full(rgb.shape[:2], 99, np.uint8),
            "list": [np.zeros_like(rgb), rgb],
            "grows": np.full((30 * 2**self.num_steps, 47 * 2**self.num_steps, 3), rgb[0, 0]),
            "none": None,
        }
        return kinds[self.kind]


class ShowsLists(Shows):
    metadata = {"render_modes": ["rgb_array_list"]}  # noqa: RUF012


class Mixed(gymnasium.Env):
    """All kinds of spaces at once. Ten steps, each of which asks anew for four things.

    The image has a bright half: `side` must say whether it is the right one. `mode` must be the
    choice shown, `keys` the two that the mask allows alone, and `push` the vector shown. Each is
    worth up to 1 a step: 40 in all is the most; random play (standard Gaussians for numbers) has
    about 24.5, since the mask gives `keys` away.
    """

    def __init__(self):
        self.observation_space = Dict(
            image=Box(0, 255, (12, 12, 1), np.uint8),
            vector=Box(-1, 1, (2,), np.float32),
            choice=Discrete(3, start=1),
            action_mask=MultiBinary(2 + 3 + 7),
        )
        self.action_space = Dict(
            {
                "side": Discrete(2),
                "parts": Tuple((Discrete(3, start=-1), MultiDiscrete([3, 4]))),
                "push": Box(np.array([-2, -4]), np.array([2, 4]), dtype=np.float32),
            }
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        return self._ask(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        mode, keys = action["parts"]
        near = 1 - np.abs(action["push"] / self.action_space["push"].high - self.target).mean() / 2
        is_right = (action["side"] == self.side, mode == self.mode - 1, (keys == self.keys).all())
        self.num_steps += 1
        return self._ask(), float(sum(is_right) + near), self.num_steps == 10, False, {}

    def _ask(self):
        self.side, self.mode = (int(self.np_random.integers(n)) for n in (2, 3))
        self.keys = self.np_random.integers([3, 4])
        self.target = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        image = np.zeros((12, 12, 1), np.uint8)
        image[:, 6 * self.side : 6 * self.side + 6] = 255
        # As the action space has its choices: it sorts its keys, so that `parts` come first.
        keys = [np.eye(n, dtype=np.int8)[key] for n, key in zip((3, 4), self.keys, strict=True)]
        mask = np.concatenate([np.ones(3, np.int8), *keys, np.ones(2, np.int8)])
        choice = np.int64(self.mode + 1)
        return {"image": image, "vector": self.target, "choice": choice, "action_mask": mask}


class TMaze(gymnasium.Env):
    """A corridor that ends in a junction; the cue at its start says which arm pays.

    Bakker 2002 (Reinforcement learning with LSTM), at length 10. The observation is (1, 0, cue) at
    the start, with cue 1 for up and -1 for down, (0, 0, 0) in the corridor and (0, 1, 0) at the
    junction. Actions: 0 up, 1 down, 2 forth, 3 back. The right arm pays 4, the other one -0.1;
    bumping into a wall costs 0.1, and so does standing before the start. Moves are free.

    The optimum is 4, in `LENGTH` + 1 steps. Without a memory the arm is a guess: 1.95 at most.
    """

    LENGTH = 10
    UP, DOWN, FORTH, BACK = range(4)

    def __init__(self):
        self.observation_space = Box(-1, 1, (3,), np.float32)
        self.action_space = Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.arm, self.place = int(self.np_random.integers(2)), 0
        return self._observation(), {}

    def step(self, action):
        place = self.place + {self.FORTH: 1, self.BACK: -1}.get(int(action), 0)
        if self.place == self.LENGTH and action in (self.UP, self.DOWN):
            return self._observation(), 4.0 if action == self.arm else -0.1, True, False, {}
        has_moved = place != self.place and 0 <= place <= self.LENGTH
        if has_moved:
            self.place = place
        return self._observation(), 0.0 if has_moved else -0.1, False, False, {}

    def _observation(self):
        cue = (1 - 2 * self.arm) * (self.place == 0)
        return np.array([self.place == 0, self.place == self.LENGTH, cue], np.float32)


class NoVelocity(gymnasium.ObservationWrapper):
    """CartPole's position and angle alone: without a memory, the pole cannot be held for long."""

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = Box(space.low[::2], space.high[::2])

    def observation(self, observation):
        return observation[::2]


class Pointer(gymnasium.Env):
    """Hit the point that is shown: the reward is minus the distance to it. One step long.

    The optimum is 0; the middle of the square, always, has -0.77.
    """

    def __init__(self):
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.target, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.target, -float(np.linalg.norm(action - self.target)), True, False, {}


class MaskedCatch(Catch):
    """Catch in which moves into a wall are illegal, as `info` says; they raise."""

    def reset(self, *, seed=None, options=None):
        picture, _ = super().reset(seed=seed)
        return picture, {"action_mask": self._mask()}

    def step(self, action):
        assert self._mask()[action], f"{action} is illegal"
        *outcome, _ = super().step(action)
        return *outcome, {"action_mask": self._mask()}

    def _mask(self):
        return np.array([self.paddle > 0, 1, self.paddle < self.COLUMNS - 1], np.int8)


gymnasium.register("Shows-list-v0", ShowsLists, kwargs={"kind": "list"})
for kind in ("rgb", "rgba", "float", "int64", "channels_first", "grey", "grows", "none"):
    gymnasium.register(f"Shows-{kind}-v0", Shows, kwargs={"kind": kind})
gymnasium.register("Guess-v0", Guess)
gymnasium.register("Normalized-v0", lambda: NormalizeObservation(CartPoleEnv()))
gymnasium.register("Catch-v0", Catch)
gymnasium.register("Planes-v0", Planes)
gymnasium.register("Point-v0", Point, max_episode_steps=100)
gymnasium.register("LateReward-v0", LateReward)
gymnasium.register("Ledger-v0", Ledger)
gymnasium.register("UnevenLedger-v0", UnevenLedger)
gymnasium.register("Mixed-v0", Mixed)
gymnasium.register("TMaze-v0", TMaze, max_episode_steps=100)
gymnasium.register(
    "CartPoleNoVelocity-v1", lambda: NoVelocity(CartPoleEnv()), max_episode_steps=500
)
gymnasium.register("Pointer-v0", Pointer)
gymnasium.register("MaskedCatch-v0", MaskedCatch)
