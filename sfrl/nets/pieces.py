"""An encoder's work in pieces: each thread takes some of the rows, through it and back.

torch's own threads divide every operation, and wait after each one for the slowest of them, busily:
that takes a core from whoever else needs it. Threads with rows of their own wait twice in a
minibatch, asleep (docs/experiments.md, "Each thread takes rows of its own").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Observations = Tensor | Mapping[str, Tensor]  # rows [B, *shape], of several leaves by name
_T = TypeVar("_T")


def encode_in_pieces(
    encode: Callable[[Observations], Tensor],
    rows: Observations,
    parameters: Iterable[Tensor],
    threads: int,
) -> Tensor:
    """`encode(rows)`, some of the rows in each thread, this one among them.

    Gradients reach the parameters as if it had been called once, but for the order of sums, which
    is the same in each call. They reach nothing else, and cannot be differentiated again. Hooks on
    parameters would run twice.

    Args:
        encode: rows -> features [B, F], each row's from that row alone. It is called in several
            threads at once, must not write to anything, and its features need gradients.
        parameters: of the encoder.
        threads: at most; each has a row or more.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if learned and torch.is_grad_enabled():
        features: Tensor = _Pieces.apply(encode, _cut(rows, threads), *learned)  # type: ignore[no-untyped-call]
        return features
    return torch.cat(_encode_all(encode, _cut(rows, threads), with_grad=False))


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        encode: Callable[[Observations], Tensor],
        pieces: Sequence[Observations],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.parameters = parameters
        ctx.features = _encode_all(encode, pieces, with_grad=True)
        return torch.cat([features.detach() for features in ctx.features])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def back(features: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
            found: tuple[Tensor | None, ...] = torch.autograd.grad(
                features, ctx.parameters, grad, allow_unused=True
            )
            return found

        grads = grad.split([len(features) for features in ctx.features])
        found = _at_once(
            [
                functools.partial(back, *of_piece)
                for of_piece in zip(ctx.features, grads, strict=True)
            ]
        )
        return None, None, *(_sum(of_parameter) for of_parameter in zip(*found, strict=True))


def _cut(rows: Observations, threads: int) -> list[Observations]:
    if isinstance(rows, Tensor):
        return list(rows.chunk(threads))
    leaves = [leaf.chunk(threads) for leaf in rows.values()]
    return [dict(zip(rows, of_piece, strict=True)) for of_piece in zip(*leaves, strict=True)]


def _encode_all(
    encode: Callable[[Observations], Tensor], pieces: Sequence[Observations], *, with_grad: bool
) -> list[Tensor]:
    def run(piece: Observations) -> Tensor:
        with torch.set_grad_enabled(with_grad):  # each thread has a mode of its own
            return encode(piece)

    return _at_once([functools.partial(run, piece) for piece in pieces])


def _at_once(calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """What they return. The first is made in this thread, the others in one each."""
    if len(calls) == 1:
        return [calls[0]()]
    others = [_helpers(len(calls) - 1).submit(call) for call in calls[1:]]
    return [calls[0](), *(other.result() for other in others)]


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    # Of its operations each has one thread, unlike a thread that torch has not been told about.
    return ThreadPoolExecutor(count, "encoder", initializer=torch.set_num_threads, initargs=(1,))


def _sum(grads: Iterable[Tensor | None]) -> Tensor | None:
    """In their order; None: the features do not depend on the parameter."""
    known = [grad for grad in grads if grad is not None]
    return functools.reduce(torch.add, known) if known else None
