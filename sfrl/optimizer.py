"""Adam and RMSprop as torch has them, without its compiler, and with a state for any device."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sfrl.config import Config

# Of an optimizer's groups; the learning rate is the config's to say, at every training batch.
_DEVICE_SETTINGS = ("lr", "capturable", "fused", "foreach")


class _Uncompiled(torch.optim.Optimizer):
    """torch's methods without the decorators that import its compiler: 1 s and 70 MiB.

    All they do is to keep the compiler away from them.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _Adam(_Uncompiled, torch.optim.Adam):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class _RMSprop(_Uncompiled, torch.optim.RMSprop):
    step = torch.no_grad()(inspect.unwrap(torch.optim.RMSprop.step))


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """As `config.optimizer` says: Adam (Kingma and Ba 2015, arXiv:1412.6980) or RMSprop.

    On a GPU all of its state and settings stay there, as a captured CUDA graph needs it.
    """
    parameters = list(model.parameters())
    # On a GPU all that changes must be in its memory: a graph would repeat a number for ever.
    on_gpu = parameters[0].is_cuda
    rate = config.learning_rate
    learning_rate = torch.tensor(rate, device=parameters[0].device) if on_gpu else rate
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = _Adam(
            parameters, lr=learning_rate, eps=config.optimizer_eps, fused=True, capturable=on_gpu
        )
    else:
        optimizer = _RMSprop(
            parameters, lr=learning_rate, alpha=0.99, eps=config.optimizer_eps, capturable=on_gpu
        )
    # The first steps run without capture, as they must: torch would warn of it.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For the steps to come; where it is a tensor also for those of a graph captured before."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def portable_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state_dict without what depends on the device."""
    state = optimizer.state_dict()
    groups = [
        {name: value for name, value in group.items() if name not in _DEVICE_SETTINGS}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def load_portable_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from what `portable_state` gave, on this optimizer's device.

    Raises:
        ValueError: what it has loaded is not of the parameters' shapes.
    """
    own = optimizer.state_dict()["param_groups"]
    kept = [{name: group[name] for name in _DEVICE_SETTINGS if name in group} for group in own]
    groups = [
        {**saved, **of_device} for saved, of_device in zip(state["param_groups"], kept, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state[parameter].items():
                if not isinstance(value, Tensor) or value.shape not in ((), parameter.shape):
                    raise ValueError(
                        f"{name} of a parameter {list(parameter.shape)} is {value!r:.40}"
                    )
