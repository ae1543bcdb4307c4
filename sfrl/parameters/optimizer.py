"""Adam, RMSprop and SGD of torch, without its compiler, and with a state for any device."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfrl.settings.config import Config

# Of an optimizer's groups: those of the device; and the learning rate is the config's to say.
_OWN_SETTINGS = ("lr", "rate_factor", "capturable", "fused", "foreach")


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


class _SGD(_Uncompiled, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def make_optimizer(
    config: Config, networks: Sequence[Sequence[nn.Parameter]]
) -> torch.optim.Optimizer:
    """As `config.optimizer` says: Adam (Kingma and Ba 2015, arXiv:1412.6980), RMSprop or SGD.

    Args:
        networks: as `Network.networks`. The second one's learning rate, that of a separate
            value network, is `value_lr_factor` times that of the first.

    On a GPU all of its state and settings stay there, as a captured CUDA graph needs it.
    """
    device = networks[0][0].device
    # On a GPU all that changes must be in its memory: a graph would repeat a number for ever.
    on_gpu = device.type == "cuda"
    groups = [
        {
            "params": network,
            "lr": torch.tensor(config.learning_rate, device=device)
            if on_gpu
            else config.learning_rate,
            "rate_factor": factor,
        }
        for network, factor in zip(networks, config.rate_factors, strict=True)
    ]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = _Adam(groups, eps=config.optimizer_eps, fused=True, capturable=on_gpu)
    elif config.optimizer == "rmsprop":
        optimizer = _RMSprop(groups, alpha=0.99, eps=config.optimizer_eps, capturable=on_gpu)
    else:
        optimizer = _SGD(groups)
    set_learning_rate(optimizer, config.learning_rate)
    # The first steps run without capture, as they must: torch would warn of it.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For the steps to come; where it is a tensor also for those of a graph captured before."""
    for group in optimizer.param_groups:
        rate = learning_rate * group["rate_factor"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def portable_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state_dict without what depends on the device."""
    state = optimizer.state_dict()
    groups = [
        {name: value for name, value in group.items() if name not in _OWN_SETTINGS}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def load_portable_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from what `portable_state` gave, on this optimizer's device.

    Raises:
        ValueError: what it has loaded is not of the parameters' shapes, or no such numbers.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = [
        {**settings, "params": saved["params"]}
        for saved, settings in zip(state["param_groups"], own, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state[parameter].items():
                if not isinstance(value, Tensor) or value.shape not in ((), parameter.shape):
                    raise ValueError(
                        f"{name} of a parameter {list(parameter.shape)} is {value!r:.40}"
                    )
                is_above = name == "step" or "sq" in name  # counts, and means of squares
                if not value.isfinite().all() or (is_above and (value < 0).any()):
                    raise ValueError(f"{name} has NaN, infinity or squares below 0")
