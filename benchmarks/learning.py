"""Which of several settings learns more, per frame, per second of a core and per minute.

    python -m benchmarks.learning now= "small batches=--minibatches=8" --tasks=CartPole-v1,Catch
    python -m benchmarks.learning now= "wide=--envs-per-worker=32" --tasks=Pong,Breakout --seeds=5

Each variant, a name and flags of train.py, trains every task with every seed, on one core, with
`--serial --tune=off`; so many run at a time as there are cores. It is judged by the area under its
learning curve: the mean, over a budget of frames (or core-seconds, or minutes), of the mean return
of the last 100 episodes, in a unit in which a random player has 0 and a good score 1. A variant
that learns earlier has more, and so has one that gets further.

Variants are compared with the first one: the difference of their areas, with an interval of 95%
from 10,000 bootstrap samples (Agarwal et al. 2021, arXiv:2108.13264), in each task and as the mean
of all. "Seeds" says how many of each it takes to see such a difference (power 80%, level 5%).

A run that has ended is kept in --out and not made again: stop the script, and start it again with
the same command, or with more seeds, tasks and variants. What a run is made of is written beside
it; with other flags it needs another name.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shlex
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import psutil
import tyro
from numpy.typing import NDArray
from scipy import stats

from benchmarks.runs import Point, read_metrics
from benchmarks.side_by_side import ROOT
from sfrl.settings.machine import machine


class Task(NamedTuple):
    env: str
    frames: int
    """Of a run. It is ended then; the schedule of its learning rate does not know."""
    random: float
    """The score of a player who presses any button."""
    good: float
    """A score that good settings have at about the end."""


# Atari's random players: Mnih et al. 2015, doi:10.1038/nature14236, extended data table 2.
TASKS = {
    "Catch": Task("tests.tiny_envs:Catch-v0", 60_000, -1, 1),
    "CartPole-v1": Task("CartPole-v1", 200_000, 20, 500),
    "Acrobot-v1": Task("Acrobot-v1", 150_000, -500, -80),
    "MinAtar/Asterix-v1": Task("minatar.gym:MinAtar/Asterix-v1", 500_000, 0.5, 5),
    "MinAtar/Breakout-v1": Task("minatar.gym:MinAtar/Breakout-v1", 500_000, 0.5, 15),
    "MinAtar/Freeway-v1": Task("minatar.gym:MinAtar/Freeway-v1", 500_000, 0.4, 55),
    "MinAtar/Seaquest-v1": Task("minatar.gym:MinAtar/Seaquest-v1", 1_000_000, 0.1, 2),
    "MinAtar/SpaceInvaders-v1": Task("minatar.gym:MinAtar/SpaceInvaders-v1", 500_000, 4, 50),
    "Pong": Task("Pong", 2_400_000, -20.7, 18),
    "Breakout": Task("Breakout", 2_400_000, 1.7, 30),
    "Qbert": Task("Qbert", 2_400_000, 163.9, 2_000),
    "MsPacman": Task("MsPacman", 2_400_000, 307.3, 1_500),
    "Seaquest": Task("Seaquest", 2_400_000, 68.4, 800),
    "SpaceInvaders": Task("SpaceInvaders", 2_400_000, 148, 500),
}
# Often, since a score counts until the next report: seconds between them would be frames that the
# machine's speed decides.
FLAGS = ("--serial", "--tune=off", "--report-seconds=0.1")
AXES = ("frames", "core-seconds", "minutes")
_POWER = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
_SAMPLES = 10_000
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Args:
    variants: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NAME=FLAGS, the first one is what the others are compared with."""
    tasks: str = "Catch,CartPole-v1"
    """Names, separated by commas: see TASKS."""
    seeds: int = 3
    """Runs of each variant in each task, with the seeds 1, 2, ..."""
    frames: int = 0
    """Of each run; 0: the task's own."""
    out: Path = Path("runs/learning")
    """Where the runs are kept."""


class Job(NamedTuple):
    task: str
    variant: str
    seed: int
    command: tuple[str, ...]
    frames: int

    def folder(self, out: Path) -> Path:
        """Of the run."""
        return out / self.task.replace("/", "-") / f"{self.variant}-{self.seed}"

    def file(self, out: Path, ending: str) -> Path:
        """Beside its folder: .json says what it is made of, .log what it has printed."""
        folder = self.folder(out)
        return folder.with_name(f"{folder.name}{ending}")  # a variant's name may have a dot


class Spent(NamedTuple):
    """What a run had taken when it was looked at."""

    time_s: float  # since it was started
    core_s: float  # of processor time, of all its processes


class Curve(NamedTuple):
    """A run, in the task's unit. Arrays [P]: one entry per reporting interval."""

    x: dict[str, NDArray[np.float64]]  # by axis: what had been spent
    score: NDArray[np.float64]  # 0 before there are 100 episodes

    def area(self, axis: str, budget: float) -> float:
        """Its mean height over [0, budget]: each score counts until the next one."""
        x = np.minimum(np.concatenate([self.x[axis], [math.inf]]), budget)
        return float((np.diff(x) * self.score).sum() / budget)


# --- the runs ---


def parse_variants(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name -> flags. Raises ValueError."""
    variants = {}
    for text in texts:
        name, separator, flags = text.partition("=")
        if not (name and separator) or "/" in name:
            raise ValueError(f"{text!r} must be NAME=FLAGS; FLAGS may be empty")
        if name in variants:
            raise ValueError(f"{name} names two variants; give the second one another name")
        variants[name] = tuple(shlex.split(flags))
    if not variants:
        raise ValueError("no variant is given; name one: NAME=FLAGS, or NAME= for the defaults")
    return variants


def make_jobs(args: Args) -> list[Job]:
    """Seed by seed, so that all have as many when the script is stopped. Raises ValueError."""
    variants, names = parse_variants(args.variants), args.tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(f"tasks={','.join(unknown)} must be among {', '.join(TASKS)}")
    return [
        Job(
            name,
            variant,
            seed,
            (f"--env={TASKS[name].env}", *FLAGS, f"--seed={seed}", *flags),
            args.frames or TASKS[name].frames,
        )
        for seed in range(1, args.seeds + 1)
        for name in names
        for variant, flags in variants.items()
    ]


def is_done(job: Job, out: Path) -> bool:
    """Whether the run is there already. Raises ValueError if it is another one's."""
    path = job.file(out, ".json")
    if not path.exists():
        return False
    made_of = json.loads(path.read_text())
    if made_of["command"] != list(job.command) or made_of["frames"] != job.frames:
        raise ValueError(
            f"{path} is a run of {shlex.join(made_of['command'])}, {made_of['frames']} frames, and "
            f"this one is of {shlex.join(job.command)}, {job.frames} frames; give the variant "
            f"another name, or remove the folder's runs of it"
        )
    return True


def train(job: Job, out: Path, core: int) -> None:
    """Runs it on one core to its last frame, and writes what it took.

    Raises:
        RuntimeError: it ended before. The text holds the end of what it said.
    """
    out = out.absolute()  # the run starts elsewhere
    folder = job.folder(out)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was not ended
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), *job.command, f"--run-dir={folder}"]
    log_path, spent, started = job.file(out, ".log"), [Spent(0.0, 0.0)], time.monotonic()
    with log_path.open("wb") as log:
        process = psutil.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            process.cpu_affinity([core])  # its threads and processes inherit it
            while process.poll() is None:
                times = process.cpu_times()
                spent.append(Spent(time.monotonic() - started, times.user + times.system))
                if _frames(folder) >= job.frames:
                    break
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # it saves and ends
            process.wait()
    if _frames(folder) < job.frames:
        raise RuntimeError(
            f"{shlex.join(command)} ended after {_frames(folder)} of {job.frames} frames:\n"
            f"{log_path.read_text(errors='replace')[-4000:]}"
        )
    made_of = {
        "command": job.command,
        "frames": job.frames,
        "spent": [[round(number, 2) for number in each] for each in spent],
        **machine(),
    }
    job.file(out, ".json").write_text(json.dumps(made_of) + "\n")


def _frames(folder: Path) -> int:
    points = read_metrics(folder / "metrics.jsonl")
    return points[-1].frames if points else 0


def origins(jobs: Sequence[Job], out: Path) -> list[str]:
    """Where the runs come from, each once: runs that were there already may be of other code."""
    made_of = (json.loads(job.file(out, ".json").read_text()) for job in jobs)
    return sorted({f"{made['commit']} on {made['cpu']}" for made in made_of})


def run_all(jobs: Sequence[Job], out: Path, cores: Sequence[int]) -> None:
    """Those that are not there yet. Raises RuntimeError: a run failed, and no other is begun."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        if not is_done(job, out):
            waiting.put(job)
    failures: list[RuntimeError] = []

    def work(core: int) -> None:
        while not failures:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                train(job, out, core)
            except RuntimeError as error:
                failures.append(error)
            print(f"{job.task}, {job.variant}, seed {job.seed}; {waiting.qsize()} wait", flush=True)

    threads = [threading.Thread(target=work, args=(core,), daemon=True) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# --- the verdict ---


def make_curve(points: Sequence[Point], spent: Sequence[Spent], task: Task) -> Curve:
    """Of a run's metrics and what it took."""
    times = np.array([point.time_s for point in points])
    scores = np.array([task.random if p.score is None else p.score for p in points])
    known = np.array(spent)
    x = {
        "frames": np.array([point.frames for point in points], np.float64),
        "core-seconds": np.interp(times, known[:, 0], known[:, 1]),
        "minutes": times / 60,
    }
    return Curve(x, (scores - task.random) / (task.good - task.random))


def read_curve(job: Job, out: Path) -> Curve:
    folder = job.folder(out)
    spent = [Spent(*each) for each in json.loads(job.file(out, ".json").read_text())["spent"]]
    points = read_metrics(folder / "metrics.jsonl")
    last = next(i for i, point in enumerate(points) if point.frames >= job.frames)
    return make_curve(points[: last + 1], spent, TASKS[job.task])


def areas_of(curves: Mapping[str, Sequence[Curve]], axis: str) -> dict[str, NDArray[np.float64]]:
    """[seeds] of each variant, over what all runs of the task have spent."""
    budget = min(float(curve.x[axis][-1]) for runs in curves.values() for curve in runs)
    return {name: np.array([c.area(axis, budget) for c in runs]) for name, runs in curves.items()}


class Verdict(NamedTuple):
    difference: float
    interval: tuple[float, float] | None  # None: one seed has none
    seeds: int | None  # of each that show the difference; None: one seed, or no difference

    def in_words(self) -> str:
        if self.interval is None:
            return "one seed, no interval"
        low, high = self.interval
        needed = "no difference" if self.seeds is None else f"{self.seeds} seeds needed"
        return f"95%: {low:+.3f} to {high:+.3f}, {needed}"


def compare(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Verdict:
    """The mean, over tasks, of how much more the second one has.

    Args:
        pairs: of each task the areas [seeds] of the first variant and of another.
    """
    difference = float(np.mean([after.mean() - before.mean() for before, after in pairs]))
    if min(areas.size for pair in pairs for areas in pair) < 2:
        return Verdict(difference, None, None)
    samples = [areas for pair in pairs for areas in pair]

    def mean_difference(*resampled: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        means = np.array([areas.mean(axis=axis) for areas in resampled])
        return np.asarray((means[1::2] - means[::2]).mean(axis=0))

    found = stats.bootstrap(
        samples,
        mean_difference,
        n_resamples=_SAMPLES,
        method="percentile",
        rng=np.random.default_rng(zlib.crc32(np.concatenate(samples).tobytes())),
    )
    variance = sum(areas.var(ddof=1) for areas in samples) / len(pairs) ** 2  # of one seed each
    low, high = found.confidence_interval
    seeds = max(2, math.ceil(_POWER**2 * variance / difference**2)) if difference else None
    return Verdict(difference, (float(low), float(high)), seeds)


def table(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]],
) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines to print, and the same as values.

    Args:
        curves: by task and variant.
    """
    lines: list[str] = []
    values: list[dict[str, Any]] = []
    for axis in AXES:
        areas = {task: areas_of(variants, axis) for task, variants in curves.items()}
        first, *others = next(iter(areas.values()))
        lines.append(f"\nper {axis:22} {'area':>7} {'seed to seed':>13}")
        for task, of_variants in areas.items():
            for name, of_seeds in of_variants.items():
                deviation = f"{of_seeds.std(ddof=1):.3f}" if of_seeds.size > 1 else "one seed"
                lines.append(f"  {task:20} {of_seeds.mean():11.3f} {deviation:>13}  {name}")
                told = {"axis": axis, "task": task, "variant": name}
                values.append({**told, "areas": of_seeds.round(4).tolist()})
        for name in others:
            groups = {task: [(of[first], of[name])] for task, of in areas.items()}
            if len(groups) > 1:
                groups["all tasks"] = [pair for [pair] in groups.values()]
            for task, pairs in groups.items():
                verdict = compare(pairs)
                lines.append(
                    f"  {task:20} {verdict.difference:+11.3f}  {verdict.in_words()}  "
                    f"{name} against {first}"
                )
                told = {"axis": axis, "task": task, "variant": name, "against": first}
                values.append({**told, **verdict._asdict()})
    return lines, values


def main(args: Args) -> None:
    jobs = make_jobs(args)
    run_all(jobs, args.out, sorted(os.sched_getaffinity(0)))
    curves: dict[str, dict[str, list[Curve]]] = {}
    for job in jobs:
        of_task = curves.setdefault(job.task, {})
        of_task.setdefault(job.variant, []).append(read_curve(job, args.out))
    lines, values = table(curves)
    print("\n".join(lines))
    asked = {"variants": args.variants, "tasks": args.tasks, "seeds": args.seeds}
    made_by = origins(jobs, args.out)
    if len(made_by) > 1:
        print(f"these runs are of {len(made_by)} commits or machines: {'; '.join(made_by)}")
    told = {"bench": "learning", **machine(), **asked, "made_by": made_by, "results": values}
    print(json.dumps(told, allow_nan=False))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"benchmarks.learning: {error}")
