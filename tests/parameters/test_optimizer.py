"""Adam, RMSprop and SGD do what torch's do; Muon's steps; and torch's compiler stays away."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from sfrl.nets.encoders import NatureCNN
from sfrl.parameters.optimizer import (
    _WIDEST,
    Muon,
    load_portable_state,
    make_optimizer,
    orthogonal,
    portable_state,
    set_learning_rate,
)
from sfrl.settings.actor_critic import ActorCriticConfig

IMPORTS_NOTHING = """
import sys, torch
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.parameters.optimizer import load_portable_state, make_optimizer, portable_state

model = torch.nn.Linear(3, 3)
for name in ("adam", "muon", "rmsprop", "sgd"):
    config = ActorCriticConfig(run_dir="x", optimizer=name)
    optimizer = make_optimizer(config, [list(model.parameters())], [model.weight])
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    load_portable_state(optimizer, portable_state(optimizer))
assert "torch._dynamo" not in sys.modules
"""


def test_the_compiler_is_not_imported() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS_NOTHING], check=True)


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_steps_are_those_of_torch_also_after_a_checkpoint(name: str) -> None:
    config = ActorCriticConfig(run_dir="x", optimizer=name)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(config, [list(ours.parameters())])
    settings = {"lr": config.learning_rate, "eps": config.optimizer_eps}
    reference: torch.optim.Optimizer
    match name:
        case "adam":
            reference = torch.optim.Adam(theirs.parameters(), **settings, fused=True)
        case "rmsprop":
            reference = torch.optim.RMSprop(theirs.parameters(), **settings, alpha=0.99)
        case "sgd":
            reference = torch.optim.SGD(theirs.parameters(), lr=config.learning_rate)
    for step in range(6):
        if step == 3:
            state = portable_state(optimizer)
            optimizer = make_optimizer(config, [list(ours.parameters())])
            load_portable_state(optimizer, state)
        for model, its_optimizer in ((ours, optimizer), (theirs, reference)):
            gradients(model, step)
            its_optimizer.step()
            its_optimizer.zero_grad(set_to_none=True)
            assert model.weight.grad is None
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_a_second_network_has_a_learning_rate_of_its_own() -> None:
    networks = [[nn.Parameter(torch.zeros(3))], [nn.Parameter(torch.zeros(3))]]
    settings = {"learning_rate": 1e-3, "value_lr_factor": 4.0, "value_encoder": "separate"}
    optimizer = make_optimizer(ActorCriticConfig(run_dir="x", **settings), networks)
    load_portable_state(optimizer, portable_state(optimizer))
    for rate in (1e-3, 5e-4):
        set_learning_rate(optimizer, rate)
        before = [p.detach().clone() for network in networks for p in network]
        for network in networks:
            network[0].grad = torch.ones(3)
        optimizer.step()
        steps = [
            (b - network[0]).mean().item() for b, network in zip(before, networks, strict=True)
        ]
        assert steps == pytest.approx([rate, 4 * rate], rel=1e-3)


@pytest.mark.parametrize("shape", [(512, 3136), (64, 512), (100, 150), (70, 20), (1, 9), (9, 1)])
def test_an_orthogonal_matrix_has_the_singular_vectors_and_about_one_value(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    scales = torch.logspace(0, -1, shape[1])
    matrix = torch.randn(shape) * scales[torch.randperm(shape[1])]
    result = orthogonal(matrix)
    assert result.shape == matrix.shape
    assert 0.65 < result.square().mean().sqrt() < 1.25
    width = shape[1] if shape[0] <= min(_WIDEST, shape[1]) else _WIDEST
    for block, given in zip(result.split(width, 1), matrix.split(width, 1), strict=True):
        left, _, right = torch.linalg.svd(given, full_matrices=False)
        inside = left.T @ block @ right.T
        values = inside.diagonal()
        values = values / max(block.shape) ** 0.5
        assert values.min() > 0.65
        assert values.max() < 1.25
        inside = inside / max(block.shape) ** 0.5
        # Nothing but what the singular vectors span, each pair with itself.
        assert (inside - values.diag()).abs().max() < 1e-3
        within = left @ left.T @ block @ right.T @ right
        assert (block - within).abs().max() < 1e-3 * block.abs().max()


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e15])
def test_a_gradient_of_any_size_gives_a_finite_step(scale: float) -> None:
    torch.manual_seed(0)
    size = orthogonal(torch.randn(70, 50) * scale).square().mean().sqrt().item()
    assert size < 1e-3 if scale < 1e-20 else 0.7 < size < 1.2


def test_rows_without_a_gradient_do_not_enlarge_the_others_steps() -> None:
    torch.manual_seed(0)
    gradient = torch.zeros(512, 640)
    gradient[100] = torch.randn(640)
    result = orthogonal(gradient)
    # One direction in each block of 64, which has the root of 512 as its singular value.
    assert result[100].norm().item() == pytest.approx((10 * 512) ** 0.5, rel=0.4)
    assert (result[:100] == 0).all()
    assert (result[101:] == 0).all()


def test_muon_moves_matrices_by_its_rate_and_the_rest_as_adam() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(40, 30), nn.Linear(40, 30)]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"run_dir": "x", "learning_rate": 0.01}
    muon = make_optimizer(
        ActorCriticConfig(optimizer="muon", **settings),
        [list(models[0].parameters())],
        [models[0].weight],
    )
    adam = make_optimizer(ActorCriticConfig(**settings), [list(models[1].parameters())])
    momentum = torch.zeros(30, 40)
    for step in range(3):
        before = models[0].weight.detach().clone()
        for model in models:
            gradients(model, step)
        gradient = models[0].weight.grad
        assert gradient is not None
        momentum = 0.9 * momentum + 0.1 * gradient
        expected = before - 0.01 * orthogonal(0.9 * momentum + 0.1 * gradient)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert (models[0].weight - expected).abs().max() < 1e-5
        assert torch.equal(models[0].bias, models[1].bias)


def test_muons_reach_shortens_the_steps_of_matrices_alone() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(40, 30), nn.Linear(40, 30)]
    models[1].load_state_dict(models[0].state_dict())
    weights = models[0].weight.detach().clone()
    for model, reach in zip(models, (1.0, torch.tensor(0.25)), strict=True):
        config = ActorCriticConfig(run_dir="x", optimizer="muon", learning_rate=0.01)
        optimizer = make_optimizer(config, [list(model.parameters())], [model.weight])
        assert isinstance(optimizer, Muon)
        optimizer.reach = reach
        gradients(model, 0)
        optimizer.step()
    whole, quarter = (model.weight.detach() - weights for model in models)
    torch.testing.assert_close(quarter, 0.25 * whole)
    assert torch.equal(models[0].bias, models[1].bias)


def test_muon_leaves_all_as_it_is_where_a_gradient_is_not_finite() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    config = ActorCriticConfig(run_dir="x", optimizer="muon")
    optimizer = make_optimizer(config, [list(model.parameters())], [model.weight])
    gradients(model, 0)
    optimizer.step()
    weights = [p.detach().clone() for p in model.parameters()]
    momentum = optimizer.state[model.weight]["momentum"].clone()
    gradients(model, 1)
    model.weight.grad[0, 0] = torch.nan  # type: ignore[index]
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert torch.equal(optimizer.state[model.weight]["momentum"], momentum)


def test_muon_goes_on_from_a_checkpoint_as_if_there_were_none() -> None:
    torch.manual_seed(0)
    models = [NatureCNN((1, 36, 36)), NatureCNN((1, 36, 36))]
    models[1].load_state_dict(models[0].state_dict())
    config = ActorCriticConfig(run_dir="x", optimizer="muon")

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        parameters = list(model.parameters())
        return make_optimizer(config, [parameters], [p for p in parameters if p.ndim > 1])

    optimizers = [optimizer_of(model) for model in models]
    for step in range(4):
        if step == 2:
            state = portable_state(optimizers[1])
            optimizers[1] = optimizer_of(models[1])
            load_portable_state(optimizers[1], state)
        for model, optimizer in zip(models, optimizers, strict=True):
            gradients(model, step)
            optimizer.step()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_state_of_adam_is_none_of_muon() -> None:
    model = nn.Linear(4, 3)
    adam = make_optimizer(ActorCriticConfig(run_dir="x"), [list(model.parameters())])
    gradients(model, 0)
    adam.step()
    config = ActorCriticConfig(run_dir="x", optimizer="muon")
    muon = make_optimizer(config, [list(model.parameters())], [model.weight])
    with pytest.raises(ValueError, match=r"a parameter \[3, 4\] has step, exp_avg, exp_avg_sq"):
        load_portable_state(muon, portable_state(adam))
