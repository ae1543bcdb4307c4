"""A trained policy as an ONNX graph, which needs nothing between it and the environment.

graph.py has the graph, and docs/export.md tells what is in the file. torch's exporter
(torch.export, then onnxscript) runs no code of the network but traces it; a user's encoder must be
such that it can.
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
from gymnasium.spaces import Box
from numpy.typing import NDArray

from sfrl import __version__
from sfrl.envs.spaces import Path, choice_sizes, start_of
from sfrl.graph import Graph, Input
from sfrl.policy import Policy

if TYPE_CHECKING:
    import onnx

_BATCH = "batch"
_EXAMPLES = 3  # observations: torch takes sizes of 0 and 1 for fixed


class ExportError(RuntimeError):
    """The policy cannot be exported; the text says why."""


def to_onnx(policy: Policy, more: Mapping[str, str]) -> onnx.ModelProto:
    """The policy as a graph, with what is to be known of it in its metadata.

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
    graph = Graph(policy).eval()
    _check(policy.config.env, graph.inputs)
    given = graph.example(_EXAMPLES)
    batch = torch.export.Dim(_BATCH)
    shapes = ({name: {0: batch} for name in given},)
    with _quiet(), torch.no_grad():
        names = list(graph(given))
        try:
            program = torch.export.export(graph, (given,), dynamic_shapes=shapes)
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[*given], output_names=names
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
    onnx.helper.set_model_props(model, {**_metadata(policy, graph.inputs), **more})
    onnx.checker.check_model(model)
    return model


def _check(env: str, inputs: list[Input]) -> None:
    """Raises ExportError."""
    names = [given.name for given in inputs]
    for name, _, dtype, _ in inputs:
        if names.count(name) > 1:
            raise ExportError(
                f"{env} shows {name!r}, and this is the name of another input, too; rename it"
            )
        if not hasattr(torch, dtype):
            raise ExportError(
                f"{env} shows {name!r} in {dtype}, which ONNX has not; give it in float64"
            )


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


def _metadata(policy: Policy, inputs: list[Input]) -> dict[str, str]:
    """What one must know to feed the graph and to use what it gives. All values are texts."""
    config, spaces = policy.config, policy.translation.spaces
    actions = [_action_part(path, leaf) for path, leaf in policy.translation.layout.leaves]
    return {
        "sfrl_version": __version__,
        "env": config.env,
        "system": config.system,
        "model": config.model,
        "rnn": config.rnn,
        "action_bounds": config.action_bounds,
        "observation_space": str(spaces.observation),
        "action_space": str(spaces.action),
        "inputs": _json([_told(given) for given in inputs]),
        "action": _json(actions),
    }


def _told(given: Input) -> dict[str, Any]:
    source = {} if given.path is None else {"from": given.path}
    return {"name": given.name, **source, "shape": given.shape, "dtype": given.dtype}


def _action_part(path: Path, leaf: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"from": list(path), "shape": leaf.shape or (), "dtype": str(leaf.dtype)}
    if isinstance(leaf, Box):
        return {**told, "low": _bounds(leaf.low), "high": _bounds(leaf.high)}
    return {**told, "choices": choice_sizes(leaf), "start": start_of(leaf).reshape(-1).tolist()}


def _bounds(bounds: NDArray[Any]) -> list[float | None]:
    """null in JSON: there is none."""
    return [
        bound if np.isfinite(bound) else None for bound in bounds.astype(float).reshape(-1).tolist()
    ]


def _json(value: object) -> str:
    return json.dumps(value, default=str)
