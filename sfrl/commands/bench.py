"""Where the frames go on this machine: `sfrl bench`. docs/bench.md tells how to read it.

Everything runs in turn: simulation before, between and after sampling and training, so that what
else the machine does meanwhile weighs on both sides of their ratios alike.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

from sfrl import envs
from sfrl.bench import queue, report
from sfrl.bench.report import Figures
from sfrl.bench.run import measure_run, recycler_body
from sfrl.commands import EXIT_FAILURE, EXIT_USAGE
from sfrl.commands.plot import check_picture
from sfrl.commands.train import read_more_flags
from sfrl.envs.logs import printable
from sfrl.envs.names import is_installed
from sfrl.ipc.shared_memory import sweep_stale_segments
from sfrl.records import run_folder
from sfrl.records.checkpoint import CheckpointError
from sfrl.run.crew import WorkerError
from sfrl.run.trainer import slower_than_need_be
from sfrl.settings.config import Config
from sfrl.settings.fields import NOTE
from sfrl.settings.machine import available_cores, machine
from sfrl.settle import settle, tuned
from sfrl.systems import SYSTEMS
from sfrl.tune import children, components

STEPS = {  # of each part, in order
    "all": [
        *("emulator", "simulation", "rollout", "sampling", "simulation", "training", "simulation"),
        *("inference", "learner"),
    ],
    "queue": ["queue"],
    "simulation": ["emulator", "simulation"],
    "sampling": ["rollout", "sampling"],
    "training": ["rollout", "training"],
    "inference": ["inference"],
    "learner": ["learner"],
}
SIMULATION_WINDOWS = 2
SAMPLING_WINDOWS = 3
TRAINING_WINDOWS = 5


@dataclass(frozen=True, kw_only=True)
class Args:
    """The measurement."""

    part: Annotated[str, NOTE] = "all"
    seconds: float = 5.0
    """Length of a window, of which there are many."""
    json: str = ""
    """Append the JSON object, which is the last line, to this file as well."""
    plot: str = ""
    """Draw where a decision's time goes, FILE.png."""


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl bench` with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
    """

    def interrupt(signum: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        return _main(argv, prog)
    except KeyboardInterrupt as interrupted:
        return 128 + int(interrupted.args[0])


def _main(argv: Sequence[str], prog: str) -> int:
    try:
        args, config, spec = _read(argv, prog)
    except (ValueError, MemoryError, CheckpointError) as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_USAGE
    sweep_stale_segments()
    try:
        figures = measure_part(args.part, config, spec, args.seconds)
    except (children.MeasureError, WorkerError, MemoryError) as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_FAILURE
    where = machine()
    result = report.to_json(args.part, figures, where, config, spec)
    try:
        print(*report.describe(where, config), *report.table(figures, spec), sep="\n")
        print(result, flush=True)
        if args.json:
            with Path(args.json).open("a") as file:
                file.write(result + "\n")
        if args.plot:
            from sfrl.bench import plot

            commit = where["commit"] or "unknown"
            title = f"{config.env} on {where['cores']} cores of {where['cpu']}, commit {commit}"
            plot.draw(report.core_us(figures), title, Path(args.plot))
    except OSError as error:  # a full disk, or a reader that has gone
        print(printable(f"{prog}: the figures cannot be written: {error}"), file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _read(argv: Sequence[str], prog: str) -> tuple[Args, Config, envs.EnvSpec]:
    """Raises ValueError if the flags cannot work."""
    flags, parts = list(argv), ", ".join(STEPS)
    part = flags.pop(0) if flags and not flags[0].startswith("-") else "all"
    if part not in STEPS:
        raise ValueError(f"{part!r} is no part of the benchmark; choose from {parts}")
    text = (
        f"Where the frames go on this machine, in about a minute and a half; or one part of it "
        f"({parts})."
    )
    args, given = read_more_flags(flags, Args(part=part), f"{prog} [PART]", text)
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"--seconds={args.seconds:g} must be above 0, and finite")
    files = {name: path for name, path in (("json", args.json), ("plot", args.plot)) if path}
    full = {name: str(run_folder.file_to_write(name, path)) for name, path in files.items()}
    args = dataclasses.replace(args, json=full.get("json", ""), plot=full.get("plot", ""))
    if args.plot:
        if part in ("queue", "inference", "learner"):
            raise ValueError(f"--plot draws simulation, sampling and training, not {part}")
        check_picture("--plot", Path(args.plot))
        if not is_installed("matplotlib"):
            raise ValueError('--plot needs matplotlib: pip install "sfrl[plots]"')
    given |= {"run_dir": "unused"}
    config, spec = settle(given)
    if config.replay is not None and part != "queue":
        raise ValueError(
            f"system={config.system} has a memory, and the benchmark measures learning from "
            f"slots in their order; use system=appo"
        )
    if SYSTEMS[config.system].layout != "separate" and part != "queue":
        raise ValueError(
            f"system={config.system} has processes of several workers, and the benchmark measures "
            f"workers one by one; use system=appo"
        )
    if part == "queue":
        return args, config, spec
    for text in slower_than_need_be(config, spec):
        print(text, file=sys.stderr)
    config = tuned(config, given, spec)
    if config.tuned:
        print(printable(config.tuned), file=sys.stderr)
    # Each worker is measured in a process of its own, whatever the run would have.
    return args, dataclasses.replace(config, serial=False), spec


def measure_part(part: str, config: Config, spec: envs.EnvSpec, seconds: float) -> Figures:
    figures, precisions = Figures(), components.PRECISIONS
    if config.precision != "auto":
        precisions = (config.precision,)
    simulations: list[components.Simulation] = []
    num_workers = max(config.num_workers, available_cores())
    on_all_cores = dataclasses.replace(config, num_workers=num_workers)
    for step in STEPS[part]:
        print(f"measuring: {step}", file=sys.stderr)
        match step:
            case "queue":
                figures.queue = queue.measure_all()
            case "emulator":
                if spec.kind == "atari":
                    figures.emulator = components.emulator(config, seconds, SIMULATION_WINDOWS)
            case "simulation":
                simulations.append(components.simulation(on_all_cores, seconds, SIMULATION_WINDOWS))
            case "rollout":
                figures.rollout = children.in_child(components.rollout, config, spec, seconds)
                python_us = figures.rollout.python_us
            case "sampling":
                figures.sampling = measure_run(
                    config, spec, seconds, SAMPLING_WINDOWS, python_us, {"learner": recycler_body}
                )
            case "training":
                figures.training = measure_run(config, spec, seconds, TRAINING_WINDOWS, python_us)
            case "inference":
                figures.inference = children.in_child(
                    components.inference,
                    config,
                    spec,
                    _batch_sizes(config),
                    seconds,
                    precisions,
                    config.envs_per_split,
                )
            case "learner":
                figures.learner = children.in_child(
                    components.learner, config, spec, seconds, precisions
                )
    if simulations:
        rates = tuple(rate for s in simulations for rate in s.decisions_per_s)
        core_us = statistics.mean(s.core_us for s in simulations)
        figures.simulation = components.Simulation(rates, core_us)
    return figures


def _batch_sizes(config: Config) -> list[int]:
    """From one split to all that a policy worker can have in one batch, doubling."""
    most = min(config.policy_batch_size, config.splits * config.envs_per_split)
    sizes = [config.envs_per_split]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    return sizes
