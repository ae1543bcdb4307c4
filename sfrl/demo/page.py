"""A run as one HTML file that needs nothing else: films, curve, figures, the machine."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from string import Template

from sfrl.demo.moments import Moment

_WIDTH, _HEIGHT = 720, 240  # of the curve, in units of its own
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 16, 12, 34  # around its area
_TICKS = 6  # of an axis, about

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="sfrl demo">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #1769aa; --faint: #8885; --card: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --line: #6bb6ff; --card: #1d2127; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: auto; padding: 1rem; }
@media (prefers-color-scheme: dark) { body { background: #121417; color: #e6e6e6; } }
h1 { font-size: 1.6rem; margin: .2rem 0; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.films { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 8px; overflow: hidden; }
video { display: block; width: 100%; height: 300px; object-fit: contain; background: #000;
  image-rendering: pixelated; }
figcaption { padding: .5rem .75rem; font-size: .9rem; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
@media (max-width: 600px) { svg { font-size: 22px; } }
svg text { fill: currentColor; }
.grid { stroke: var(--faint); }
.mark { stroke: currentColor; stroke-dasharray: 4 4; opacity: .6; }
.curve { fill: none; stroke: var(--line); stroke-width: 2.5; stroke-linejoin: round; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem .35rem 0;
  border-bottom: 1px solid var(--faint); overflow-wrap: anywhere; }
th { font-weight: 600; width: 9.5rem; }
pre { background: var(--card); padding: .75rem; border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$lead</p>
<div class="films">
$films
</div>
<h2>Score, mean of 100 episodes, against minutes</h2>
$curve
<h2>The run</h2>
<table>
$figures
</table>
<h2>The machine</h2>
<table>
$machine
</table>
<h2>Go on</h2>
<pre>$command</pre>
</body>
</html>
""")


def page(
    *,
    title: str,
    lead: str,
    moments: Sequence[Moment],
    curve: Sequence[tuple[float, float]],  # minutes, score
    figures: Mapping[str, str],  # of the run, by what they are
    machine: Mapping[str, str],
    command: str,  # to go on
) -> str:
    """The file's text. All arguments are plain text."""
    return _PAGE.substitute(
        title=escape(title),
        lead=escape(lead),
        films="\n".join(map(_film, moments)),
        curve=_curve(curve, [moment.minutes for moment in moments]),
        figures=_rows(figures),
        machine=_rows(machine),
        command=escape(command),
    )


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _rows(figures: Mapping[str, str]) -> str:
    return "\n".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}</td></tr>"
        for name, text in figures.items()
    )


def _film(moment: Moment) -> str:
    minutes = f"{moment.minutes:.1f}".removesuffix(".0")
    is_short = 0 < moment.minutes < 1
    name = f"Second {60 * moment.minutes:.0f}" if is_short else f"Minute {minutes}"
    if moment.frames == 0:
        text = "before learning"
    else:
        score = "none yet" if moment.score is None else number(moment.score)
        text = f"{moment.frames:,} frames, score {score}"
    end = "this episode" if moment.is_whole else "this episode so far"
    data = base64.b64encode(moment.film).decode()
    return (
        f'<figure><video src="data:video/mp4;base64,{data}" aria-label="{escape(name)}" '
        f"autoplay loop muted playsinline controls></video>"
        f"<figcaption><b>{escape(name)}</b>: {text}<br>"
        f"{end}: {number(moment.film_score)}</figcaption></figure>"
    )


def _curve(points: Sequence[tuple[float, float]], marks: Sequence[float]) -> str:
    """Score against minutes as an SVG, with a dashed line where each film was made."""
    if len(points) < 2:
        return "<p>Too few episodes have ended for a curve.</p>"
    minutes, scores = zip(*points, strict=True)
    end = max(minutes[-1], *marks)
    low, high = min(scores), max(scores)
    margin = (high - low) * 0.05 or 1.0
    low, high = low - margin, high + margin

    def x(minute: float) -> str:
        return f"{_LEFT + minute / end * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(score: float) -> str:
        return f"{_TOP + (high - score) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    bottom = _HEIGHT - _BOTTOM
    told = f"Score against minutes: {number(scores[0])} at first, {number(scores[-1])} at last"
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{told}">']
    for tick in _ticks(low, high):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}"/>')
        at = f'x="{_LEFT - 8}" y="{y(tick)}"'
        parts.append(f'<text {at} dy=".35em" text-anchor="end">{tick:,g}</text>')
    for tick in _ticks(0, end):
        parts.append(f'<text x="{x(tick)}" y="{_HEIGHT - 10}" text-anchor="middle">{tick:g}</text>')
    for mark in marks:
        parts.append(f'<path class="mark" d="M{x(mark)} {_TOP}V{bottom}"/>')
    line = "L".join(f"{x(minute)} {y(score)}" for minute, score in points)
    parts.append(f'<path class="curve" d="M{line}"/></svg>')
    return "\n".join(parts)


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield round(number * step, 10)
