"""Learning curves: score against minutes, frames and decisions. Like bench/plot.py it alone needs
matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sfrl.records.run_folder import write_whole
from sfrl.runs.comparison import Group

_AXES = {  # name of a metric: what the axis says, and by what it is divided
    "time_s": ("minutes", 60),
    "env_frames": ("million frames", 1e6),
    "env_steps": ("million decisions", 1e6),
}
_COLUMNS = 2
_DASHES = ("-", "--", ":", "-.")


def draw(groups: Sequence[Group], path: Path) -> None:
    """One file, as its suffix says (png, pdf, svg); a line for each run, a color for each group.

    A curve begins where 100 episodes have ended, if they have.
    """
    rows = -(-len(groups) // _COLUMNS)  # of the legend, above the panels
    figure = Figure(figsize=(12, 3.75 + 0.25 * rows), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for axes, (metric, (label, unit)) in zip(panels, _AXES.items(), strict=True):
        for number, group in enumerate(groups):
            dashes = _DASHES[number // 10 % len(_DASHES)]  # there are ten colors
            style: Any = {"color": f"C{number}", "linestyle": dashes, "linewidth": 1}
            for index, run in enumerate(group.runs):
                x, scores = np.array(run.curve(metric)).reshape(-1, 2).T
                name = "" if index else group.label
                axes.plot(x / unit, scores, label=name, **style)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("score, mean of 100 episodes")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=_COLUMNS)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As the path's suffix says; without one it is a PNG. Raises OSError."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=path.suffix[1:] or "png")
    write_whole(path, content.getvalue())
