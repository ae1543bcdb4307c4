"""A trained network as an ONNX graph: it scales, normalizes, remembers and decides by itself.

docs/export.md tells what is in the file. torch's exporter (torch.export, then onnxscript) runs no
code of the network but traces it; a user's encoder must be such that it can.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor, nn

from sfrl import __version__
from sfrl.envs.spaces import Part, Path, choice_sizes, ranges_of
from sfrl.nets.encoders import example
from sfrl.policy import Policy

if TYPE_CHECKING:
    import onnx

STATE, NEXT_STATE = "state", "next_state"
_BATCH = "batch"
_EXAMPLES = 3  # observations: torch takes sizes of 0 and 1 for fixed


class ExportError(RuntimeError):
    """The network cannot be exported; the text says why."""


class _Graph(nn.Module):
    """A policy's network with what lies between it and the environment's own actions."""

    low: Tensor  # of the environment's numbers, [D]; here and below: see `Ranges`
    high: Tensor
    middle: Tensor
    reach: Tensor  # `Ranges.half`
    least: Tensor
    most: Tensor
    is_whole: Tensor  # [D] bool, the numbers of a Box of integers
    starts: Tensor  # [K], the lowest value of each choice

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.algorithm, self.model = policy.algorithm, policy.model
        layout = policy.translation.layout
        self.spec = layout.spec
        self.is_squashed = policy.config.action_bounds == "tanh"
        ranges = ranges_of(layout.spec)
        names = ("low", "high", "middle", "reach", "least", "most")
        for name, array in zip(names, (*ranges, *ranges.limits), strict=True):
            self.register_buffer(name, torch.from_numpy(array).float())
        starts = [
            np.broadcast_to(getattr(leaf, "start", 0), leaf.shape or ()).reshape(-1)
            for _, leaf in layout.leaves
            if not isinstance(leaf, Box)
        ]
        self.register_buffer("starts", torch.from_numpy(np.concatenate([[], *starts])).long())
        whole = [
            np.full(int(np.prod(leaf.shape)), not np.issubdtype(leaf.dtype, np.floating))
            for _, leaf in layout.leaves
            if isinstance(leaf, Box)
        ]
        self.register_buffer("is_whole", torch.from_numpy(np.concatenate([[], *whole]) > 0))

    def forward(self, obs: dict[str, Tensor], state: Tensor | None) -> dict[str, Tensor]:
        outputs, state = self.algorithm.outputs(self.model, obs, state)
        outputs = {**outputs, "action": self._own(outputs["action"])}
        return outputs if state is None else {**outputs, NEXT_STATE: state}

    def _own(self, rows: Tensor) -> Tensor:
        """As the environment has them: see `ActionLayout.own`."""
        num_choices = len(self.spec.choices)
        if not self.spec.low:
            return rows + self.starts[0] if self.spec.is_single else rows + self.starts
        choices, raw = rows[:, :num_choices], rows[:, num_choices:]
        if self.is_squashed:
            softplus = F.softplus(raw)
            one_sided = torch.where(self.high.isfinite(), self.high - softplus, raw)
            one_sided = torch.where(self.low.isfinite(), self.low + softplus, one_sided)
            has_both = self.low.isfinite() & self.high.isfinite()
            numbers = torch.where(has_both, self.middle + self.reach * raw.tanh(), one_sided)
        else:
            numbers = self.middle + self.reach * torch.minimum(
                torch.maximum(raw, self.least), self.most
            )
        numbers = torch.where(self.is_whole, numbers.round(), numbers)
        numbers = torch.minimum(torch.maximum(numbers, self.low), self.high)
        return torch.cat([choices + self.starts, numbers], dim=1) if num_choices else numbers


def to_onnx(policy: Policy, more: Mapping[str, str]) -> onnx.ModelProto:
    """The policy's network as a graph, with what is to be known of it in its metadata.

    Args:
        more: metadata besides.

    Raises:
        ExportError: packages are missing, or there is no graph of the network (a user's encoder).
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ExportError(
            f'an export needs the package {error.name}: pip install "sfrl[export]"'
        ) from error
    graph = _Graph(policy).eval()
    leaves = policy.spec.leaves
    obs = {leaf.name: example(leaf, _EXAMPLES) for leaf in leaves}
    state, size = None, policy.model.state_size
    if size:
        state = torch.zeros(_EXAMPLES, size)
    batch = torch.export.Dim(_BATCH)
    shapes: Any = ({name: {0: batch} for name in obs}, {0: batch} if size else None)
    with _quiet(), torch.no_grad():
        names = list(graph(obs, state))
        try:
            program = torch.export.export(graph, (obs, state), dynamic_shapes=shapes)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[*obs, *([STATE] if size else [])],
                output_names=names,
            )
        except Exception as error:  # of any kind: it traces a user's code
            reason = " ".join(str(error).split())[:160]
            raise ExportError(
                f"model={policy.config.model} cannot be exported ({type(error).__name__}: {reason})"
            ) from error
    assert exported is not None, "dynamo=True returns a program"
    model: onnx.ModelProto = exported.model_proto
    _name_the_batch(model)
    model.producer_name, model.producer_version = "sfrl", __version__
    onnx.helper.set_model_props(model, {**_metadata(policy), **more})
    onnx.checker.check_model(model)
    return model


def shapes_of(values: Any) -> dict[str, str]:
    """Of a graph's inputs or outputs, by name: "uint8[batch, 4, 84, 84]"."""
    import onnx

    def told(value: Any) -> str:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        sizes = (dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
        return f"{dtype}[{', '.join(sizes)}]"

    return {value.name: told(value) for value in values}


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells of packages that it does not need, and of its own old functions."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logger.setLevel(level)


def _name_the_batch(model: onnx.ModelProto) -> None:
    """The one size that is free; torch's names for it are arbitrary."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _BATCH


def _metadata(policy: Policy) -> dict[str, str]:
    """What one must know to feed the graph and to use what it gives. All values are texts."""
    config, spaces = policy.config, policy.translation.spaces
    parts = {part.leaf.name: part for part in spaces.parts}
    layout = policy.translation.layout
    actions = [_action_part(path, leaf) for path, leaf in layout.leaves]
    inputs = [
        {
            "name": leaf.name,
            "kind": leaf.kind,
            "shape": leaf.shape,
            "dtype": leaf.dtype,
            **(_source(parts[leaf.name]) if leaf.name in parts else {}),
        }
        for leaf in policy.spec.leaves
    ]
    if policy.model.state_size:
        inputs.append({"name": STATE, "shape": [policy.model.state_size], "dtype": "float32"})
    told = {
        "observation_space": str(spaces.observation),
        "action_space": str(spaces.action),
        "inputs": inputs,
        "action": actions,
        "action_bounds": config.action_bounds,
        "frame_stack": config.frame_stack,
        "choices": layout.spec.choices,
    }
    texts = {
        name: value if isinstance(value, str) else _json(value) for name, value in told.items()
    }
    return {
        "sfrl_version": __version__,
        "env": config.env,
        "system": config.system,
        "model": config.model,
        "rnn": config.rnn,
        **texts,
    }


def _source(part: Part) -> dict[str, Any]:
    """Where an input is in an observation, and how it is to be turned."""
    told: dict[str, Any] = {"from": list(part.path), "own_shape": part.space.shape or ()}
    if part.order:
        told["transpose"] = part.order
    start = np.asarray(getattr(part.space, "start", 0))
    if start.any():
        told["minus"] = start.tolist()
    return {**told, "leaf_shape": part.leaf.shape}  # before it is made smaller, and stacked


def _action_part(path: Path, leaf: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"from": list(path), "shape": leaf.shape or (), "dtype": str(leaf.dtype)}
    if isinstance(leaf, Box):
        return {**told, "low": _bounds(leaf.low), "high": _bounds(leaf.high)}
    start = np.broadcast_to(getattr(leaf, "start", 0), leaf.shape or ()).reshape(-1)
    return {**told, "choices": choice_sizes(leaf), "start": start.tolist()}


def _bounds(bounds: NDArray[Any]) -> list[float | None]:
    """null in JSON: there is none."""
    return [
        bound if np.isfinite(bound) else None for bound in bounds.astype(float).reshape(-1).tolist()
    ]


def _json(value: object) -> str:
    return json.dumps(value, default=str)
