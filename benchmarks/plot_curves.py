"""Learning curves: score against frames and against minutes, and when a score is reached.

    python -m benchmarks.plot_curves --out=docs/pong.png --score=18 \\
        "ours=runs/pong-[1-3],runs/pong-7" "Sample Factory=runs/sf"

Each argument is a name and the folders of its runs, or patterns of folders, one per seed: of
train.py (metrics.jsonl) or of `benchmarks.sample_factory` (sf_log.txt). The score is the mean
return of the last 100 episodes; our curves begin when there are as many. Minutes are of the whole
run, start-up included.
"""

from __future__ import annotations

import glob
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import tyro

from benchmarks import sample_factory
from benchmarks.runs import SCORE_EPISODES, Point, read_metrics

mpl.use("Agg")  # draws into files; needs no screen
from matplotlib import pyplot as plt


@dataclass(frozen=True, kw_only=True)
class Args:
    curves: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NAME=RUN_DIR,RUN_DIR,... where a RUN_DIR may be a pattern, runs/pong-?"""
    out: Path = Path("curves.png")
    """The picture."""
    score: float = 18.0
    """The score that the table tells about."""
    keep: str = ""
    """A folder for a copy of each curve, thinned, from which this script draws it again."""


def read_run(run_dir: Path) -> list[Point]:
    """The curve of a run, of whichever trainer. Raises ValueError if the folder has none."""
    readers = {"metrics.jsonl": read_metrics, sample_factory.LOG_NAME: sample_factory.read_log}
    for name, read in readers.items():
        if (run_dir / name).exists():
            if points := read(run_dir / name):
                return points
            raise ValueError(f"{run_dir} has no record yet; leave it out")
    raise ValueError(f"{run_dir} holds none of {', '.join(readers)}; name the folder of a run")


def read_curves(arguments: Sequence[str]) -> dict[str, dict[Path, list[Point]]]:
    """Name -> run's folder -> its points, of arguments NAME=RUN_DIR,RUN_DIR,...

    Raises ValueError for another form, and for a folder that holds no run.
    """
    curves = {}
    for argument in arguments:
        name, separator, folders = argument.partition("=")
        if not (name and separator and folders):
            raise ValueError(f"{argument!r} must be NAME=RUN_DIR,RUN_DIR,...")
        matches = (sorted(glob.glob(folder)) or [folder] for folder in folders.split(","))
        curves[name] = {Path(found): read_run(Path(found)) for found in chain(*matches)}
    return curves


def first_reaching(points: Sequence[Point], score: float) -> Point | None:
    return next((p for p in points if p.score is not None and p.score >= score), None)


def extrapolate(points: Sequence[Point], score: float) -> Point | None:
    """Where the straight line through the second half of the curve will meet the score.

    None if that half does not rise, or if the line says that the score should have been reached.
    """
    scored = [point for point in points if point.score is not None]
    second_half = scored[len(scored) // 2 :]
    if len(second_half) < 2:
        return None
    times, frames, scores = np.array(second_half, np.float64).T
    time_slope, score_at_0 = np.polyfit(times, scores, 1)
    frame_slope, score_at_frame_0 = np.polyfit(frames, scores, 1)
    if min(time_slope, frame_slope) <= 0:
        return None
    time_s = (score - score_at_0) / time_slope
    if time_s <= times[-1]:
        return None
    return Point(time_s, round((score - score_at_frame_0) / frame_slope), score)


def table_row(name: str, run_dir: Path, points: Sequence[Point], score: float) -> str:
    """When the run reached the score, or would if it went on as in its second half."""
    prefix, remark = "", ""
    point = first_reaching(points, score)
    if point is None:
        highest = max((p.score for p in points if p.score is not None), default=None)
        best = "no score yet" if highest is None else f"best {highest:.1f}"
        remark = f"  not reached in {points[-1].time_s / 60:.1f} min, {best}"
        point = extrapolate(points, score)
        if point is not None:
            prefix, remark = "~", f"{remark}; extrapolated"
    minutes = "-" if point is None else f"{prefix}{point.time_s / 60:.1f}"
    frames = "-" if point is None else f"{prefix}{point.frames / 1e6:.2f} M"
    return f"{name:20} {run_dir.name:20} {minutes:>9} {frames:>10}{remark}"


def plot(curves: dict[str, dict[Path, list[Point]]], score: float, path: Path) -> None:
    """Two panels, one line per run; the runs of one name share a color."""
    figure, (by_frames, by_minutes) = plt.subplots(
        1, 2, figsize=(10, 4), sharey=True, layout="constrained"
    )
    for color, (name, runs) in enumerate(curves.items()):
        for index, points in enumerate(runs.values()):
            times, frames, scores = np.array(points, np.float64).T  # a score of None becomes NaN
            style = {"color": f"C{color}", "linewidth": 0.8, "label": "" if index else name}
            by_frames.plot(frames / 1e6, scores, **style)
            by_minutes.plot(times / 60, scores, **style)
    for axes, label in ((by_frames, "million frames"), (by_minutes, "minutes")):
        axes.axhline(score, color="grey", linewidth=0.5, linestyle="--")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    by_frames.set_ylabel("score, mean of 100 episodes")
    by_frames.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def keep(points: Sequence[Point], run_dir: Path) -> None:
    """Write a metrics.jsonl of every n-th point, at most 100 and the last one."""
    step = math.ceil(len(points) / 100)
    lines = [
        json.dumps(
            {
                "time_s": round(point.time_s, 1),
                "env_frames": point.frames,
                "episodes": 0 if point.score is None else SCORE_EPISODES,
                "episode_return_mean": point.score and round(point.score, 2),
            }
        )
        for point in dict.fromkeys([*points[::step], points[-1]])
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def main(args: Args) -> None:
    curves = read_curves(args.curves)
    kept = Counter(run_dir.name for runs in curves.values() for run_dir in runs)
    if args.keep and (twice := [name for name, number in kept.items() if number > 1]):
        raise ValueError(f"keep={args.keep} has room for one run named {', '.join(twice)}")
    print(f"{'curve':20} {'run':20} {'minutes':>9} {'frames':>10}  to a score of {args.score:g}")
    for name, runs in curves.items():
        for run_dir, points in runs.items():
            print(table_row(name, run_dir, points, args.score))
            if args.keep:
                keep(points, Path(args.keep, run_dir.name))
    plot(curves, args.score, args.out)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except ValueError as error:
        sys.exit(f"benchmarks.plot_curves: {error}")
