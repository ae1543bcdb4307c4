"""Our optimizers do what torch's do, and do not import its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from sfrl.parameters.optimizer import (
    load_portable_state,
    make_optimizer,
    portable_state,
    set_learning_rate,
)
from sfrl.settings.actor_critic import ActorCriticConfig

IMPORTS_NOTHING = """
import sys, torch
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.parameters.optimizer import load_portable_state, make_optimizer, portable_state

model = torch.nn.Linear(3, 3)
for name in ("adam", "rmsprop", "sgd"):
    config = ActorCriticConfig(run_dir="x", optimizer=name)
    optimizer = make_optimizer(config, [list(model.parameters())])
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
