"""Actor-critic: the noise of actions' numbers, correlated over time (--noise-correlation)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sfrl.algorithms import make_algorithm
from sfrl.envs import OBS, ActionSpec, EnvSpec
from sfrl.settings.actor_critic import ActorCriticConfig
from tests.leaves import discrete, vector

ROWS = 4000  # for each correlation: estimates err by 0.016
BOUNDS = {"low": (-1.0, -torch.inf), "high": (1.0, torch.inf)}


def config_of(correlation: float, **memory: object) -> ActorCriticConfig:
    settings = {"num_workers": 1, "num_splits": 1, "envs_per_worker": 4, "slots_per_split": 99}
    return ActorCriticConfig(
        env="of-none", model="mlp", noise_correlation=correlation, **settings, **memory
    )


def spec_of(actions: ActionSpec) -> EnvSpec:
    return EnvSpec("vector", (vector(3),), actions, frameskip=1)


@pytest.mark.parametrize(
    "actions",
    [ActionSpec(**BOUNDS), ActionSpec(choices=(3, 2), **BOUNDS)],
    ids=["numbers", "choices and numbers"],
)
@pytest.mark.parametrize("memory", [{}, {"rnn": "lstm", "rnn_size": 4}], ids=str)
def test_noise_is_standard_and_resembles_that_of_the_row_before(actions, memory):
    config = config_of(0.9, **memory)
    end = 0.2 * config.train_frames
    table = np.array([config.exploration(share * end)[0, 0] for share in (1, 2 / 3, 1 / 3, 0)])
    np.testing.assert_allclose(table, [0, 0.3, 0.6, 0.9], rtol=1e-5, atol=1e-7)
    assert (config.exploration(2 * end) == 0).all()
    torch.manual_seed(0)
    algorithm = make_algorithm(config, spec_of(actions))
    model = algorithm.make_model()
    generator = torch.Generator().manual_seed(0)
    epsilon = torch.from_numpy(table).repeat_interleave(ROWS)
    size = config.acting_state_size(spec_of(actions))
    assert size == model.state_size + 2
    state = torch.zeros(len(epsilon), size)
    noises = []
    for _ in range(5):
        obs = {OBS: torch.randn(len(epsilon), 3, generator=generator)}
        with torch.inference_mode():
            memory_before = state[:, : model.state_size] if model.state_size else None
            logits, memory_after = model.preferences(obs, memory_before)
            acted, state = algorithm.act(model, obs, state, epsilon, generator)
        drawn = acted["actions"][:, len(actions.choices) :]
        noises.append((drawn - logits[:, actions.num_logits :]) / model.log_std.exp())
        torch.testing.assert_close(state[:, -2:], noises[-1], rtol=1e-4, atol=1e-5)
        if memory_after is not None:
            torch.testing.assert_close(state[:, :-2], memory_after)
    noise = torch.stack(noises).unflatten(1, (4, ROWS)).detach()  # [t, correlation, row, D]
    assert noise.mean(2).abs().max() < 0.08
    assert (noise.var(2) - 1).abs().max() < 0.12, "from the first row on"
    for gap in (1, 2, 4):
        found = (noise[gap:] * noise[:-gap]).mean(2)  # [t, correlation, D]
        expected = torch.from_numpy(table**gap)[:, None].expand_as(found)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    assert (noise[..., 0] * noise[..., 1]).mean(2).abs().max() < 0.08, "of each number by itself"


def test_noise_after_a_state_of_zeros_is_that_of_a_first_row():
    config = config_of(0.9)
    algorithm = make_algorithm(config, spec_of(ActionSpec(**BOUNDS)))
    model = algorithm.make_model()
    obs = {OBS: torch.randn(ROWS, 3)}

    def noise_after(state: Tensor | None) -> Tensor:
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(5)
            acted = algorithm.act(model, obs, state, torch.full((ROWS,), 0.9), generator)
        assert acted.rnn_state is not None
        return acted.rnn_state

    first = noise_after(None)
    before = torch.randn(ROWS, 2)
    before[::2] = 0
    after = noise_after(before)
    torch.testing.assert_close(after[::2], first[::2])
    torch.testing.assert_close(after[1::2], 0.9 * before[1::2] + (1 - 0.81) ** 0.5 * first[1::2])


@pytest.mark.parametrize("memory", [{}, {"rnn": "gru", "rnn_size": 4}], ids=str)
@pytest.mark.parametrize("actions", [ActionSpec(**BOUNDS), discrete(3)], ids=["numbers", "choices"])
def test_the_likeliest_actions_may_take_turns_with_drawn_ones(actions, memory):
    """The likeliest leave the noise as it was, and remember as the drawn ones do."""
    algorithm = make_algorithm(config_of(0.9, **memory), spec_of(actions))
    torch.manual_seed(0)
    model = algorithm.make_model()
    share = torch.full((ROWS,), 0.9)
    generator = torch.Generator().manual_seed(0)
    state = own = None
    for is_drawn in (False, False, True, True, False, False, True):
        obs = {OBS: torch.randn(ROWS, 3, generator=generator)}
        before = state
        with torch.inference_mode():
            logits, own = model.preferences(obs, own)
            expected = model.policy(logits, obs).mode()
            if is_drawn:
                _, state = algorithm.act(model, obs, state, share, generator)
                continue
            acted, state = algorithm.greedy(model, obs, state)
        torch.testing.assert_close(acted["actions"], expected)
        if own is not None:
            torch.testing.assert_close(state[:, : model.state_size], own)
        if actions.num_numbers:
            noise = torch.zeros(ROWS, 2) if before is None else before[:, -2:]
            torch.testing.assert_close(state[:, -2:], noise)


def test_without_numbers_there_is_no_noise_to_remember():
    for actions in (discrete(4), ActionSpec(choices=(2, 3))):
        spec = spec_of(actions)
        assert config_of(0.9).acting_state_size(spec) == 0
        with_memory = config_of(0.9, rnn="gru", rnn_size=7)
        assert with_memory.acting_state_size(spec) == 7
    assert config_of(0.0).acting_state_size(spec_of(ActionSpec(**BOUNDS))) == 0
