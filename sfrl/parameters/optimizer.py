"""Adam, RMSprop and SGD of torch, without its compiler, Muon, and a state for any device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfrl.settings.config import Config

# Of an optimizer's groups: those of the device; and the learning rate is the config's to say.
_OWN_SETTINGS = ("lr", "rate_factor", "capturable", "fused", "foreach")

# Muon's: momentum; the widest matrix made orthogonal at once; Jordan's iteration.
_MOMENTUM = 0.9
_WIDEST = 64
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_LEAST = 1e-30  # of a sum of squares: far below any gradient, and its root is no infinity


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


class Muon(_Adam):
    """Steps in all directions of a weight matrix alike; Adam's for what is no such matrix.

    The mean of the gradients, Nesterov's (momentum 0.9), is replaced by the nearest matrix whose
    singular values are all 1: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
    networks". A gradient has a few large directions, those that the inputs have in common, and
    those decide Adam's steps; here the small ones count as much. At each step a weight changes by
    about the learning rate, as a root mean square. By Adam's steps, where gradients are mostly
    noise, it changes by a quarter of that: so Muon needs a lower rate, or one that falls.

    A large matrix is cut into blocks of 64 columns, each of which is made orthogonal by itself:
    then NatureCNN's layer of 512 takes an eighth of the multiplications. There a block is what one
    place of the image has. Products must be float32's: with torch's TF32 small directions explode.

    Attributes:
        reach: multiplies the steps of the matrices, 0 to 1.
    """

    reach: Tensor | float = 1.0

    def __init__(
        self, groups: list[dict[str, Any]], matrices: Sequence[nn.Parameter], **settings: Any
    ) -> None:
        """
        Args:
            matrices: those of the groups' parameters that get such steps, [M, ...]; what follows
                the first dimension counts as columns.
        """
        super().__init__(groups, **settings)
        self._matrices = {id(p) for p in matrices}

    def check_names(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
        """Raises ValueError: its state is none that this optimizer makes of the parameter."""
        if ("momentum" in state) != (id(parameter) in self._matrices):
            raise ValueError(f"a parameter {list(parameter.shape)} has {', '.join(state)}")

    # Adam's expects of each parameter the state that it makes itself.
    __setstate__ = torch.optim.Optimizer.__setstate__

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """The gradients of the matrices are used up."""
        was_infinite = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if id(parameter) in self._matrices and gradient is not None:
                    self._edit(parameter, gradient, group["lr"] * self.reach, was_infinite)
                    parameter.grad = None
        super().step()

    def _edit(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        rate: Tensor | float,
        was_infinite: Tensor | None,
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        if was_infinite is not None:  # leave all as it is, without asking the device
            gradient = torch.where(was_infinite.bool(), momentum, gradient)
            rate = rate * (1 - was_infinite)
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        mean = gradient.lerp_(momentum, _MOMENTUM)
        change = orthogonal(mean.flatten(1)).view_as(mean)
        parameter.addcmul_(change, torch.as_tensor(rate), value=-1.0)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of each block U S V^T of a matrix [M, N], times the root of its longer side.

    A block is 64 columns, or the whole matrix where M is at most 64 and at most N. The factor makes
    the root mean square about 1, less where directions are missing. U V^T is approximate: its
    singular values are 0.7 to 1.2; less for those of S below a thousandth of the largest; 0 for 0.
    """
    rows, columns = matrix.shape
    result = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    if rows <= min(_WIDEST, columns):
        _write_orthogonal(matrix.T[None], result.T[None])
        return result
    whole = columns - columns % _WIDEST
    if whole:
        blocks, results = (
            m[:, :whole].unflatten(1, (-1, _WIDEST)).transpose(0, 1) for m in (matrix, result)
        )
        _write_orthogonal(blocks, results)
    if whole < columns:
        _write_orthogonal(matrix[None, :, whole:], result[None, :, whole:])
    return result


def _write_orthogonal(blocks: Tensor, results: Tensor) -> None:
    """Of blocks [B, M, K], by the iteration of Newton and Schulz on their K x K products.

    All that happens to a block is a multiplication from the right, with a polynomial of X^T X: so
    only the first and the last product are of its size.
    """
    products = blocks.mT @ blocks
    squared = products.diagonal(dim1=1, dim2=2).sum(1).clamp(min=_LEAST)[:, None, None]
    products = products / squared
    factor = change = _polynomial(products)
    for _ in range(_ITERATIONS - 1):
        products = change @ products @ change
        change = _polynomial(products)
        factor = factor @ change
    torch.bmm(blocks, factor * (blocks.shape[1] / squared).sqrt(), out=results)


def _polynomial(products: Tensor) -> Tensor:
    """a + b P + c P^2 of matrices P [B, K, K]."""
    a, b, c = _COEFFICIENTS
    result = torch.baddbmm(products, products, products, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


def make_optimizer(
    config: Config,
    networks: Sequence[Sequence[nn.Parameter]],
    matrices: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """As `config.optimizer` says: Adam (Kingma and Ba 2015, arXiv:1412.6980), Muon, RMSprop or SGD.

    Args:
        networks: as `Network.networks`. The second one's learning rate, that of a separate
            value network, is `value_lr_factor` times that of the first.
        matrices: as `Network.matrices`, for Muon.

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
    elif config.optimizer == "muon":
        settings = {"eps": config.optimizer_eps, "fused": True, "capturable": on_gpu}
        optimizer = Muon(groups, matrices, **settings)
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
            saved = optimizer.state[parameter]
            if isinstance(optimizer, Muon) and saved:
                optimizer.check_names(parameter, saved)
            for name, value in saved.items():
                if not isinstance(value, Tensor) or value.shape not in ((), parameter.shape):
                    raise ValueError(
                        f"{name} of a parameter {list(parameter.shape)} is {value!r:.40}"
                    )
                is_above = name == "step" or "sq" in name  # counts, and means of squares
                if not value.isfinite().all() or (is_above and (value < 0).any()):
                    raise ValueError(f"{name} has NaN, infinity or squares below 0")
