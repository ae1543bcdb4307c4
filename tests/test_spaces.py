"""Random environments of all spaces, through the real workers: acting and learning agree.

A case is a seed. Its environment checks what it is given; its rows are checked here.
"""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from torch.nn.functional import one_hot

from sfrl import envs
from sfrl.algorithms.actor_critic import ActorCriticNetwork
from sfrl.envs import ACTION_MASK
from sfrl.envs.observe_last import LAST_ACTION, LAST_REWARD
from sfrl.experience.minibatch import Minibatch
from sfrl.ipc.mailbox import Mailbox
from sfrl.run.roles import make_learner
from sfrl.settings.algorithms import make_config
from sfrl.workers.learner import Learner
from tests.actors import Actors

T, N = 4, 2  # rollout length, environments
NUM_CASES = 200
FLOATS = [(0, 255), (-3, 2), (0, 1)]  # what pixels of images lie between


def observed(rng: np.random.Generator, depth: int = 2) -> Space[Any]:
    """A random observation space, nested up to `depth` times."""
    kinds = [
        lambda: Box(-np.inf, np.inf, (int(rng.integers(1, 4)),), np.float32),
        lambda: Box(-2.0, np.array([[1.0, 9.0], [np.inf, 3.0]]), dtype=np.float64),
        lambda: Box(0, 255, (8, 9, int(rng.choice([1, 3]))), np.uint8),
        lambda: Box(*FLOATS[rng.integers(3)], (8, 9, int(rng.choice([1, 3]))), np.float32),
        lambda: Box(0, 1, (2, 8, 8, 3), np.bool_),
        lambda: Box(0, 9, (5,), np.uint8),
        lambda: Box(-3, 7, (), np.int32),
        lambda: Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4))),
        lambda: MultiDiscrete(rng.integers(1, 5, size=(2, 2)), start=[[0, -1], [2, 0]]),
        lambda: MultiBinary(3),
    ]
    return nested(kinds, observed, rng, depth)


def acted(rng: np.random.Generator, depth: int = 2) -> Space[Any]:
    """A random action space."""
    low = rng.choice([-np.inf, -2.0, 0.5], size=3).astype(np.float32)
    high = rng.choice([np.inf, 1.5], size=3).astype(np.float32)
    kinds = [
        lambda: Discrete(int(rng.integers(2, 6)), start=int(rng.integers(-3, 4))),
        lambda: Discrete(int(rng.integers(2, 6))),
        lambda: MultiDiscrete([2, 4, 3]),
        lambda: MultiBinary(2),
        lambda: Box(low, high),
        lambda: Box(-1, 1, (2, 1), np.float64),
        lambda: Box(-3, 2, (2,), np.int32),
    ]
    return nested(kinds, acted, rng, depth)


def nested(kinds: list[Any], draw: Any, rng: np.random.Generator, depth: int) -> Space[Any]:
    form = rng.integers(4) if depth else 3
    parts = [draw(rng, depth - 1) for _ in range(rng.integers(1, 4))] if form < 2 else []
    if form == 0:
        return Dict(dict(zip("zab", parts, strict=False)))
    if form == 1:
        return Tuple(parts)
    return kinds[rng.integers(len(kinds))]()


def chosen(space: Space[Any], action: Any) -> list[tuple[int, int]]:
    """(how many there are, which of them) of each choice in an action."""
    if isinstance(space, Dict):
        return [pair for name in space for pair in chosen(space[name], action[name])]
    if isinstance(space, Tuple):
        return [pair for one, part in zip(space, action, strict=True) for pair in chosen(one, part)]
    if isinstance(space, Discrete):
        return [(int(space.n), int(action - space.start))]
    if isinstance(space, MultiDiscrete):
        return list(zip(space.nvec.tolist(), action.tolist(), strict=True))
    if isinstance(space, MultiBinary):
        return [(2, int(key)) for key in action]
    return []


class Drawn(gymnasium.Env[Any, Any]):
    """Of random spaces. It shows samples, ends after 3 to 6 steps, and refuses what is illegal."""

    def __init__(self, case: int) -> None:
        rng = np.random.default_rng(case)
        self.observation_space = observed(rng)
        self.action_space = acted(rng)
        self.sizes = [size for size, _ in chosen(self.action_space, self.action_space.sample())]
        self.form = str(rng.choice(["none", "info", "key"])) if self.sizes else "none"
        if self.form == "key":
            spaces = {"seen": self.observation_space, ACTION_MASK: MultiBinary(sum(self.sizes))}
            self.observation_space = Dict(spaces)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps_left = int(self.np_random.integers(3, 7))
        return self._show()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        choices = chosen(self.action_space, action)
        for mask, (_, index) in zip(self.masks, choices, strict=True):
            assert mask[index] or self.form == "none", (self.masks, action)
        self.steps_left -= 1
        has_ended, is_cut = self.steps_left == 0, bool(self.np_random.integers(2))
        obs, info = self._show(is_last=has_ended)
        return obs, float(self.np_random.normal()), has_ended and not is_cut, has_ended, info

    def _show(self, *, is_last: bool = False) -> tuple[Any, dict[str, Any]]:
        self.masks = [self.np_random.random(size) < 0.4 for size in self.sizes]
        for mask in self.masks:
            mask[self.np_random.integers(len(mask))] = True
        flat = np.concatenate([np.zeros(0, np.bool_), *self.masks]).astype(np.int8)
        flat *= not is_last  # nobody acts on it
        obs = self.observation_space.sample()
        if self.form == "key":
            obs[ACTION_MASK] = flat
        return obs, {"action_mask": flat} if self.form == "info" else {}


for case in range(NUM_CASES):
    gymnasium.register(f"Drawn-{case}-v0", Drawn, kwargs={"case": case})


def settings_of(case: int) -> dict[str, object]:
    """Random ones, but for those that do nothing in the environment, which are refused."""
    rng = np.random.default_rng([case, 1])
    values = drawn_settings(case, rng)
    config = make_config(values)
    spec = envs.describe(config.env, config.env_options)
    if spec.kind == "image":
        values["model"] = str(rng.choice(["small_cnn", "small_cnn", "mlp"]))
    return {name: values[name] for name in values.keys() - config.unused_in(spec).keys()}


def drawn_settings(case: int, rng: np.random.Generator) -> dict[str, Any]:
    rnn, layers = str(rng.choice(["none", "gru", "lstm"])), int(rng.integers(1, 3))
    return {
        "env": f"tests.test_spaces:Drawn-{case}-v0",
        "frameskip": 1,
        "frame_stack": int(rng.choice([1, 1, 3])),
        "observe_last": bool(rng.integers(2)),
        "reward_clip": "none",
        "precision": "float32",
        "serial": True,
        "model": str(rng.choice(["mlp", "norm_mlp"])),
        "num_workers": 1,
        "num_splits": 1,
        "envs_per_worker": N,
        "slots_per_split": 2,
        "rollout_length": T,
        "batch_size": T * N,
        "minibatches": 1,
        "epochs": 2,
        "debug_buffers": True,
        "value_encoder": str(rng.choice(["shared", "separate"])),
        "normalize_obs": bool(rng.integers(2)),
        "normalize_returns": bool(rng.integers(2)),
        "action_bounds": str(rng.choice(["clip", "tanh"])),
        "noise_correlation": float(rng.choice([0.0, 0.9])),
        **({"rnn": rnn, "rnn_size": 5, "rnn_layers": layers} if rnn != "none" else {}),
    }


@pytest.mark.parametrize("case", range(NUM_CASES))
def test_any_environment_is_acted_in_and_learned_from(make_shared, case):
    shared = make_shared(**settings_of(case))
    learner = make_learner(shared, Mailbox(), Mailbox(), None)
    with torch.no_grad():
        learner.model.policy_head.weight.mul_(30)  # policies that differ by observation
        for bias in (p for p in learner.model.parameters() if p.ndim == 1):
            bias.add_(0.3 * torch.randn_like(bias))  # at 0 a normalized layer hides any scale
    learner.publish()
    actors = Actors(shared, learner)
    waiting = actors.collect(2)  # the second one begins in the middle of episodes
    for slot in waiting:
        assert_acted_by(learner, rows_of(learner, slot))
    for _ in range(3):
        if not waiting:  # the last one is of the weights of two training batches
            waiting = actors.collect(1)
            assert_acted_by(learner, rows_of(learner, waiting[0]))
        slot = waiting.pop(0)
        rows = rows_of(learner, slot)
        for leaf in shared.env.leaves:
            assert rows.obs[leaf.name].shape == (T + 1, N, *leaf.shape)
        assert_allowed(rows, shared.env.actions.choices)
        assert_stacked(rows, shared.config.frame_stack)
        if shared.config.observe_last:
            assert_last_is_observed(rows, shared.env.actions.choices)
        learner.begin([slot])
        while learner.is_training:
            learner._train_on_next()
        assert learner.skipped_steps == 0
        weights = learner.model.state_dict()
        assert all(weight.isfinite().all() for weight in weights.values())
    assert learner.learner_steps == 6


def rows_of(learner: Learner, slot: int) -> Minibatch:
    return learner.experience.gather(torch.full((N,), slot), torch.arange(N))


@torch.no_grad()
def assert_acted_by(learner: Learner, rows: Minibatch) -> None:
    """The rows are of the learner's present weights, and their log-probabilities are those that its
    model gives their actions."""
    version = learner.learner_steps
    assert (rows.policy_version == version).all()
    model, size = learner.model, learner.model.state_size
    assert isinstance(model, ActorCriticNetwork)
    state = rows.rnn_state[:, :size] if rows.rnn_state is not None and size else None  # less noise
    logits, _ = model.unroll(rows.obs, state, rows.valid)
    policy = model.policy(logits[:-1], {name: leaf[:-1] for name, leaf in rows.obs.items()})
    log_probs, valid = policy.log_prob(rows.acted["actions"]), rows.valid[:-1]
    torch.testing.assert_close(
        log_probs[valid], rows.acted["log_probs"][valid], rtol=1e-4, atol=1e-4
    )
    loss = learner.algorithm.loss(model, None, rows, torch.tensor(version))
    for name in ("approx_kl", "ppo_clipped_fraction"):
        assert abs(loss.statistics[name]) < 1e-4, "the loss finds the policy that acted"


def assert_stacked(rows: Minibatch, size: int) -> None:
    """A row shows what the row before showed, but for the oldest; an episode's first, one alone."""
    for name in rows.obs.keys() - {ACTION_MASK, LAST_ACTION, LAST_REWARD}:
        frames = rows.obs[name].unflatten(2, (size, -1))  # [T + 1, N, size, ...]
        goes_on = rows.valid[:-1]
        assert frames[1:, :, :-1][goes_on].equal(frames[:-1, :, 1:][goes_on])
        first = frames[1:][~goes_on]
        assert first.equal(first[:, -1:].expand_as(first))


def assert_last_is_observed(rows: Minibatch, sizes: tuple[int, ...]) -> None:
    """A row shows action and reward of the row before; an episode's first, zeros."""
    goes_on = rows.valid[:-1]
    actions = rows.acted["actions"].reshape(T, N, -1)
    choices = [one_hot(actions[..., k].long(), size) for k, size in enumerate(sizes)]
    last_action = torch.cat([*choices, actions[..., len(sizes) :]], dim=-1)
    last_action[~goes_on] = 0
    assert rows.obs[LAST_ACTION][1:].equal(last_action.float())
    assert rows.obs[LAST_REWARD][1:, :, 0].equal(rows.rewards * goes_on)


def assert_allowed(rows: Minibatch, sizes: tuple[int, ...]) -> None:
    """No choice of a valid row is out of range, or one that the mask forbids."""
    valid = rows.valid[:-1]
    actions = rows.acted["actions"][valid].numpy()
    choices = actions.reshape(len(actions), -1)[:, : len(sizes)].astype(np.int64)
    assert ((choices >= 0) & (choices < sizes)).all()
    if ACTION_MASK in rows.obs:
        starts = np.cumsum([0, *sizes[:-1]])
        mask = rows.obs[ACTION_MASK][:-1][valid].numpy()
        assert np.take_along_axis(mask, choices + starts, axis=1).all()
