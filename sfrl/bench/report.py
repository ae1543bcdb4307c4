"""The benchmark's figures as a table for people and as a JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sfrl.bench.run import RunFigures
from sfrl.envs import EnvSpec
from sfrl.records.metrics import rounded
from sfrl.settings.config import Config
from sfrl.settings.machine import available_cores
from sfrl.tune.components import Inference, Learning, Rollout, Simulation


@dataclass
class Figures:
    """What has been measured; None and empty where it was not asked for or does not exist."""

    queue: dict[str, dict[str, float]] | None = None
    emulator: Sequence[float] = ()  # frames/s, one per window
    simulation: Simulation | None = None
    rollout: Rollout | None = None
    sampling: RunFigures | None = None
    training: RunFigures | None = None
    inference: list[Inference] = field(default_factory=list)
    learner: list[Learning] = field(default_factory=list)

    @property
    def runs(self) -> dict[str, RunFigures]:
        runs = {"sampling": self.sampling, "training": self.training}
        return {part: figures for part, figures in runs.items() if figures is not None}


def frames_per_s(figures: Figures, spec: EnvSpec) -> dict[str, list[float]]:
    """Part -> one rate per window; only the parts that were measured."""
    rates: dict[str, list[float]] = {}
    if figures.emulator:
        rates["emulator"] = list(figures.emulator)
    parts = {"simulation": figures.simulation, **figures.runs}
    for part, measured in parts.items():
        if measured is not None:
            rates[part] = [rate * spec.frameskip for rate in measured.decisions_per_s]
    return rates


def efficiency(rates: Mapping[str, Sequence[float]], part: str) -> float | None:
    """The part's median rate over that of pure simulation."""
    if part not in rates or "simulation" not in rates:
        return None
    return statistics.median(rates[part]) / statistics.median(rates["simulation"])


def core_us(figures: Figures) -> dict[str, dict[str, float]]:
    """Part -> "component/stage" -> core microseconds per decision."""
    parts: dict[str, dict[str, float]] = {}
    if (simulation := figures.simulation) is not None:
        all_us = available_cores() * 1e6 / statistics.median(simulation.decisions_per_s)
        own_us = simulation.core_us
        parts["simulation"] = {"rollout/env_step": own_us, "idle": all_us - own_us}
    return parts | {part: run.core_us for part, run in figures.runs.items()}


def stages_of(parts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Those that took any time, of all parts of `core_us`; what is left idle comes last."""
    stages = dict.fromkeys(stage for part in reversed(list(parts)) for stage in parts[part])
    return [stage for stage in stages if any(part.get(stage) for part in parts.values())]


def to_json(
    part: str, figures: Figures, machine: Mapping[str, object], config: Config, spec: EnvSpec
) -> str:
    """One line. docs/bench.md explains the keys."""
    rates = frames_per_s(figures, spec)
    settings = dataclasses.asdict(config)
    del settings["run_dir"]  # no run is kept
    runs = {name: run._asdict() for name, run in figures.runs.items()}
    for run in runs.values():
        del run["decisions_per_s"], run["core_us"]  # they stand elsewhere
    result = {
        "bench": part,
        **{
            name: _summary(rates[name], spec) if name in rates else None
            for name in ("emulator", "simulation", "sampling", "training")
        },
        "efficiency": efficiency(rates, "training"),
        "sampling_efficiency": efficiency(rates, "sampling"),
        "components": {
            **runs,
            "core_us": core_us(figures),
            "rollout_alone": figures.rollout and figures.rollout._asdict(),
            "inference_alone": [case._asdict() for case in figures.inference],
            "learner_alone": [case._asdict() for case in figures.learner],
            "queue": figures.queue,
        },
        "machine": {**machine, "settings": settings},
    }
    return json.dumps(rounded(result))


def _summary(rates: Sequence[float], spec: EnvSpec) -> dict[str, float]:
    median = statistics.median(rates)
    return {
        "frames_per_s": median,
        "frames_per_s_min": min(rates),
        "frames_per_s_max": max(rates),
        "decisions_per_s": median / spec.frameskip,
        "windows": len(rates),
    }


def describe(machine: Mapping[str, object], config: Config) -> list[str]:
    """On what it was measured, and with which settings."""
    loss = getattr(config, "loss", config.system)  # of an algorithm that has one
    return [
        "; ".join(f"{name}: {value}" for name, value in machine.items()),
        f"{config.env}: {config.num_workers} rollout workers x {config.num_splits} splits x "
        f"{config.envs_per_split} environments, {config.num_policy_workers} policy workers; "
        f"{config.model}, {loss}, T={config.rollout_length}, {config.epochs} epochs of "
        f"{config.minibatches} x {config.batch_size}, precision {config.precision}",
        "",
    ]


def table(figures: Figures, spec: EnvSpec) -> list[str]:
    """What was measured, line by line; no more than that."""
    lines: list[str] = []
    if rates := frames_per_s(figures, spec):
        lines += [
            f"{'':18}{'frames/s':>10}{'of windows':>22}{'decisions/s':>14}{'of simulation':>15}"
        ]
        for part, values in rates.items():
            median, share = statistics.median(values), efficiency(rates, part)
            lines.append(
                f"{part:18}{median:10,.0f}{min(values):12,.0f} -{max(values):8,.0f}"
                f"{median / spec.frameskip:14,.0f}" + (f"{share:15.2f}" if share else "")
            )
    if parts := core_us(figures):
        lines += ["", f"{'core us/decision':26}" + "".join(f"{part:>12}" for part in parts)]
        for stage in stages_of(parts):
            cells = (
                f"{part[stage]:12.1f}" if stage in part else " " * 12 for part in parts.values()
            )
            lines.append(f"{stage:26}" + "".join(cells))
        lines.append(f"{'sum':26}" + "".join(f"{sum(p.values()):12.1f}" for p in parts.values()))
    for part, run in figures.runs.items():
        lines += ["", f"time of the processes in {part}, in {run.precision}"]
        for component, shares in run.shares.items():
            stages_text = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
            lines.append(f"  {component:10}{stages_text}")
        lines.append(
            f"  {run.inference_us:.0f} us of inference per decision, "
            f"{run.messages_per_s:,.0f} messages/s of {run.message_bytes:.1f} bytes, "
            f"{run.memory_mib:,.0f} MiB of memory (PSS)"
        )
        if run.learner_us is not None and run.refresh_us is not None:
            lines.append(
                f"  {run.learner_us:.0f} us of learning per decision, weights refreshed in "
                f"{run.refresh_us:.0f} us"
            )
        if run.lag_mean is not None and run.lag_max is not None:
            lines.append(
                f"  policy lag {run.lag_mean:.1f} optimizer steps, at most {run.lag_max:.0f}"
            )
    if figures.rollout is not None or figures.inference or figures.learner:
        lines += ["", "alone on the machine"]
    if figures.rollout is not None:
        lines.append(
            f"  rollout worker: {figures.rollout.python_us:.0f} us of Python per split step, "
            f"about {figures.rollout.copy_us:.0f} of them the copy of its observations, and "
            f"{figures.rollout.env_us:,.0f} us in its environments"
        )
    for case in figures.inference:
        each_us = case.batch_us / case.batch_size
        lines.append(
            f"  inference: {case.precision}, {case.batch_size} rows: {case.batch_us:,.0f} us, "
            f"{each_us:.0f} us each, {case.host_us:,.0f} us of the host's time"
        )
    for learning in figures.learner:
        lines.append(f"  learner: {learning.precision}: {learning.decision_us:.0f} us per decision")
    return lines
