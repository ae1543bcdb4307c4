"""`sfrl export RUN --onnx=FILE`: a trained network for programs without sfrl and torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium

from sfrl.commands import EXIT_FAILURE, EXIT_USAGE
from sfrl.envs.logs import printable
from sfrl.records import checkpoint, run_folder
from sfrl.run.description import describe
from sfrl.runs import reader
from sfrl.settings import synonyms
from sfrl.settings.algorithms import config_from
from sfrl.settings.flags import parse_flags

REFUSALS = (ValueError, MemoryError, checkpoint.CheckpointError, gymnasium.error.Error)


@dataclass(frozen=True, kw_only=True)
class Args:
    """The network."""

    onnx: str = ""
    """The file to write, FILE.onnx. One that is there is replaced."""
    checkpoint: str = "latest"
    """latest, best, or the path of a checkpoint, which may be of any run."""

    def check(self) -> Path:
        """The file to write, in full. Raises ValueError: it cannot be written, or none is named."""
        if not self.onnx:
            raise ValueError("name the file to write: --onnx=FILE.onnx")
        if not self.onnx.endswith(".onnx"):
            raise ValueError(f"onnx={self.onnx} must name a file that ends in .onnx")
        return run_folder.file_to_write("onnx", self.onnx, is_replaced=True)


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl export` with these arguments; returns its exit code.

    Args:
        argv: the run first, if one is named, by its folder or its name in runs/; then flags.
        prog: what the user has called, for `--help` and errors.
    """
    run_dir, flags = "", list(argv)
    if flags and not flags[0].startswith("-"):
        run_dir = flags.pop(0)
    try:
        text = (
            "Write a trained network to an ONNX file: of RUN, a folder or its name in runs/; of "
            "the newest run there if none is named."
        )
        run_folder.started_in()
        args = parse_flags(flags, Args(), synonyms.OF_EXPORT, f"{prog} [RUN]", text)
        path = args.check()
        if run_dir:
            run_dir = str(reader.find(run_dir))
        content, told = _exported(run_dir, args.checkpoint)
    except REFUSALS as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_USAGE
    except RuntimeError as error:
        from sfrl.export import ExportError  # which `_exported` has imported, with torch

        if not isinstance(error, ExportError):
            raise
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_FAILURE
    try:
        run_folder.write_whole(path, content)
        print(json.dumps({"onnx": run_folder.expanded("onnx", args.onnx), **told}), flush=True)
    except OSError as error:
        what = error.filename or "the summary"
        print(printable(f"{prog}: {what} cannot be written: {error.strerror}"), file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _exported(run_dir: str, which: str) -> tuple[bytes, dict[str, object]]:
    """The file's content, and what is told of it. Raises as `sfrl.load`, and ExportError."""
    # Here, because torch takes seconds to import and a mistyped flag should not have to wait.
    from sfrl.export import shapes_of, to_onnx
    from sfrl.policy import Policy, find_checkpoint

    state, path = find_checkpoint(run_dir, which)
    config = config_from(state["config"], str(path))
    describe(config.env, config.env_options, config.env_timeout)  # tells why it cannot be made
    print(printable(f"{config.env} by {path}"), file=sys.stderr)
    counters = {name: str(value) for name, value in state["counters"].items()}
    model = to_onnx(Policy(config, state["model"]), {"checkpoint": path.name, **counters})
    inputs, outputs = shapes_of(model.graph.input), shapes_of(model.graph.output)
    return model.SerializeToString(), {"inputs": inputs, "outputs": outputs}
