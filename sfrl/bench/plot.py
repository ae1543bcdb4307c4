"""Where a decision's time goes, as stacked bars. Like runs/plot.py it alone needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from sfrl.bench.report import stages_of
from sfrl.runs.plot import save

_PALETTES = {
    "rollout": "Greens",
    "policy": "Blues",
    "learner": "Oranges",
    "trainer": "Purples",
    "idle": "Greys_r",  # light where the others are dark
}


def draw(core_us: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """One bar per part of the benchmark, as PNG or whatever the path's suffix says.

    Args:
        core_us: part ("training") -> "component/stage" -> core microseconds per decision.
    """
    figure = Figure(figsize=(10, 1.6 + 0.8 * len(core_us)), layout="constrained")
    axes = figure.subplots()
    stages = stages_of(core_us)
    left = np.zeros(len(core_us))
    for stage, color in _colors(stages).items():
        widths = np.array([part.get(stage, 0.0) for part in core_us.values()])
        axes.barh(list(core_us), widths, left=left, color=color, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("microseconds of core time per decision, all cores together")
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    save(figure, path)


def _colors(stages: list[str]) -> dict[str, tuple[float, float, float, float]]:
    """By stage, in their order: shades of one color for each component."""
    components = [stage.partition("/")[0] for stage in stages]
    colors = {}
    for i, (stage, component) in enumerate(zip(stages, components, strict=True)):
        shade = 0.2 + 0.6 * components[i:].count(component) / components.count(component)
        colors[stage] = colormaps[_PALETTES[component]](shade)
    return colors
