"""Weights that one learner owns, and the earlier policies that it keeps beside them."""

import pytest
import torch

from sfrl.algorithms import make_algorithm
from sfrl.parameters.central import CentralParameters
from sfrl.settings.actor_critic import _PROXIMAL_DECAY

SIZES = {
    "env": "CartPole-v1",
    "frameskip": 1,
    "model": "mlp",
    "num_workers": 1,
    "num_splits": 1,
    "envs_per_worker": 2,
    "rollout_length": 4,
    "batch_size": 8,
    "minibatches": 1,
    "epochs": 2,
}


def made(make_shared, correction):
    shared = make_shared(**SIZES, correction=correction)
    model = make_algorithm(shared.config, shared.env).make_model()
    return CentralParameters(shared.config, model, shared.weights, shared.target_weights), shared


def step(parameters):
    """By gradients of 1."""
    loss = sum(parameter.sum() for parameter in parameters.model.parameters())
    parameters.step(loss, lambda model, applied: None)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_decoupled_ppo_clips_around_a_moving_average_of_all_steps(make_shared):
    parameters, _ = made(make_shared, "decoupled")
    average = flat(parameters.model)
    for version in (1, 2, 3):
        step(parameters)
        average.lerp_(flat(parameters.model), 1 - _PROXIMAL_DECAY)
        parameters.publish(version)  # which keeps it
        torch.testing.assert_close(flat(parameters.target), average)
    assert not torch.equal(average, flat(parameters.model))


def test_a_learner_that_takes_over_goes_on_with_the_average(make_shared):
    parameters, shared = made(make_shared, "decoupled")
    step(parameters)
    parameters.publish(1)
    torch.manual_seed(1)
    other = make_algorithm(shared.config, shared.env).make_model()
    successor = CentralParameters(shared.config, other, shared.weights, shared.target_weights)
    assert torch.equal(flat(successor.target), flat(parameters.target))


def test_impacts_target_is_a_copy_that_is_renewed_once_a_round(make_shared):
    parameters, shared = made(make_shared, "impact")
    assert shared.config.target_period == shared.config.updates_per_round == 2
    first = flat(parameters.model)
    step(parameters)
    parameters.publish(1)
    assert torch.equal(flat(parameters.target), first)
    step(parameters)
    parameters.publish(2)
    assert torch.equal(flat(parameters.target), flat(parameters.model))


@pytest.mark.parametrize("correction", ["vtrace", "none"])
def test_the_other_corrections_keep_no_earlier_policy(make_shared, correction):
    assert made(make_shared, correction)[0].target is None


def test_a_checkpoint_holds_the_average_and_one_without_it_begins_with_the_model(make_shared):
    parameters, shared = made(make_shared, "decoupled")
    step(parameters)
    parameters.publish(1)
    saved = {**parameters.state(), "counters": {"learner_steps": 1}}
    torch.manual_seed(1)
    other = make_algorithm(shared.config, shared.env).make_model()
    resumed = CentralParameters(shared.config, other, shared.weights, shared.target_weights)
    resumed.load_state(saved)
    assert torch.equal(flat(resumed.target), flat(parameters.target))
    assert not torch.equal(flat(resumed.target), flat(resumed.model))
    del saved["target"]
    resumed.load_state(saved)
    assert torch.equal(flat(resumed.target), flat(resumed.model))
