"""What a run of any trainer left behind, as points of one curve, and its throughput."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SCORE_EPISODES = 100  # the score is the mean return of this many episodes


class Point(NamedTuple):
    """What one reporting interval ended with."""

    time_s: float  # since the start of the run, start-up included
    frames: int  # emulated so far: decisions times frameskip
    score: float | None  # mean return of the last 100 episodes; None before there are that many


def read_metrics(path: Path) -> list[Point]:
    """The points of a metrics.jsonl. A last line that was cut short is left out."""
    lines = path.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        Point(
            record["time_s"],
            record["env_frames"],
            record["episode_return_mean"] if record["episodes"] >= SCORE_EPISODES else None,
        )
        for record in records
    ]


def throughput(points: Sequence[Point]) -> float:
    """Frames per second from the first point that has frames to the last one.

    So start-up, and the first interval's uneven part, are left out, by the same rule for everyone.

    Raises:
        ValueError: fewer than three points have frames.
    """
    counted = [point for point in points if point.frames > 0]
    if len(counted) < 3:
        raise ValueError(
            f"{len(counted)} reports with frames are too few to tell a rate from; 3 are needed: "
            "raise --seconds"
        )
    first, last = counted[0], counted[-1]
    return (last.frames - first.frames) / (last.time_s - first.time_s)
