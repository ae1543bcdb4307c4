"""The lag atlas: what is learned from old data, by how old it is and what is made of that.

    python -m benchmarks.lag --tasks=Catch --seeds=10 --picture=docs/img/lag-catch.png
    python -m benchmarks.lag --tasks=CartPole-v1 --lags=0,50 --reuses=4

Whoever acts has weights that are --lags optimizer steps older than the newest (--forced-lag), each
row is learned from --reuses times, and the losses correct for that in nine ways. A cell is the
area under the learning curve per frames, from 0, a random player, to 1, as benchmarks.learning has
it; runs are made as there, one core each, and kept in --out. The last line printed is JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks import learning
from sfrl.settings.machine import machine

mpl.use("Agg")  # draws into files; needs no screen
from matplotlib import pyplot as plt

CORRECTIONS = {
    "none": "--loss=vtrace --correction=none",
    "epsilon": "--loss=vtrace --correction=epsilon",
    "one-step weights": "--loss=vtrace --correction=one-step",
    "V-trace": "--loss=vtrace",
    "PPO": "--loss=appo --correction=none",
    "PPO and V-trace": "--loss=appo",
    "decoupled": "--loss=appo --correction=decoupled",
    "IMPACT": "--loss=appo --correction=impact",
    "filter": "--loss=appo --correction=filter",
}


@dataclass(frozen=True, kw_only=True)
class Args:
    tasks: str = "Catch"
    """Names, separated by commas: see benchmarks.learning."""
    lags: str = "0,5,20,50,200"
    """Optimizer steps."""
    reuses: str = "1,2,4"
    """Epochs."""
    corrections: str = ",".join(CORRECTIONS)
    """Which of them."""
    optimizer: str = "adam"
    """Of all cells: by default it would differ between corrections in Atari's games."""
    seeds: int = 3
    """Runs of each cell."""
    frames: int = 0
    """Of each run; 0: the task's own."""
    out: Path = Path("runs/lag")
    """Where the runs are kept."""
    picture: str = ""
    """Draw the heat map of the first task into this file."""


def _numbers(name: str, text: str, least: int) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ValueError(f"{name}={text} must be whole numbers from {least} on, as in 1,2,4")
    return [int(part) for part in parts]


class Grid:
    """The cells of one task: one variant of benchmarks.learning each.

    Raises:
        ValueError: a number is none, or a correction is unknown.
    """

    def __init__(self, args: Args) -> None:
        self.lags = _numbers("lags", args.lags, least=0)
        self.reuses = _numbers("reuses", args.reuses, least=1)
        self.corrections = args.corrections.split(",")
        self.optimizer = args.optimizer
        if unknown := [name for name in self.corrections if name not in CORRECTIONS]:
            raise ValueError(
                f"corrections={','.join(unknown)} must be among {', '.join(CORRECTIONS)}"
            )
        self.cells = list(itertools.product(self.reuses, self.corrections, self.lags))

    def variants(self) -> list[str]:
        return [
            f"{self.name(*cell)}={CORRECTIONS[cell[1]]} --optimizer={self.optimizer} "
            f"--epochs={cell[0]} --forced-lag={cell[2]}"
            for cell in self.cells
        ]

    @staticmethod
    def name(reuse: int, correction: str, lag: int) -> str:
        return f"{correction} x{reuse} lag {lag}"

    def areas(self, jobs: list[learning.Job], out: Path) -> NDArray[np.float64]:
        """[reuses, corrections, lags, seeds], of one task's jobs."""
        by_variant: dict[str, list[learning.Curve]] = {}
        for job in jobs:
            by_variant.setdefault(job.variant, []).append(learning.read_curve(job, out))
        areas = learning.areas_of(by_variant, "frames")
        shape = len(self.reuses), len(self.corrections), len(self.lags), -1
        return np.array([areas[self.name(*cell)] for cell in self.cells]).reshape(shape)


def draw(grid: Grid, means: NDArray[np.float64], task: str, path: str) -> None:
    """A panel for each reuse: corrections down, lags across."""
    figure, panels = plt.subplots(
        1, len(grid.reuses), figsize=(4.2 * len(grid.reuses), 3.2), squeeze=False, sharey=True
    )
    figure.set_layout_engine("constrained")
    for axes, reuse, cells in zip(panels[0], grid.reuses, means, strict=True):
        image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(grid.lags)), [str(lag) for lag in grid.lags])
        axes.set_yticks(range(len(grid.corrections)), grid.corrections)
        axes.set_xlabel("forced lag, optimizer steps")
        axes.set_title(f"{task}, each row {reuse} time{'s' * (reuse > 1)}", fontsize=10)
        for (row, column), value in np.ndenumerate(cells):
            color = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=panels[0], label="area under the curve")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: Args) -> None:
    grid = Grid(args)
    jobs = learning.make_jobs(
        learning.Args(
            variants=tuple(grid.variants()),
            tasks=args.tasks,
            seeds=args.seeds,
            frames=args.frames,
            out=args.out,
        )
    )
    learning.run_all(jobs, args.out, sorted(os.sched_getaffinity(0)))
    told = {}
    for task in args.tasks.split(","):
        areas = grid.areas([job for job in jobs if job.task == task], args.out)
        means = areas.mean(axis=-1)
        told[task] = areas.round(4).tolist()
        for reuse, cells in zip(grid.reuses, means, strict=True):
            print(f"\n{task}, each row {reuse} times; lag" + "".join(f"{k:8}" for k in grid.lags))
            for name, row in zip(grid.corrections, cells, strict=True):
                print(f"  {name:28}" + "".join(f"{value:8.3f}" for value in row))
        if args.picture and task == args.tasks.split(",")[0]:
            draw(grid, means, task, args.picture)
    settings = {**asdict(args), "out": str(args.out), "made_by": learning.origins(jobs, args.out)}
    print(json.dumps({"bench": "lag", **machine(), **settings, "areas": told}))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"benchmarks.lag: {error}")
