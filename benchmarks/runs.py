"""What a run of any trainer left behind, as points of one curve, and its throughput."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sfrl.runs.reader import read_records

SCORE_EPISODES = 100  # the score is the mean return of this many episodes


class Point(NamedTuple):
    """What one reporting interval ended with."""

    time_s: float  # since the start of the run, start-up included
    frames: int  # emulated so far: decisions times frameskip
    score: float | None  # mean return of the last 100 episodes; None before there are that many


def read_metrics(path: Path) -> list[Point]:
    """The points of a metrics.jsonl; [] if there is none yet."""
    return [
        Point(
            record["time_s"] or 0.0,
            int(record["env_frames"] or 0),
            record["episode_return_mean"] if (record["episodes"] or 0) >= SCORE_EPISODES else None,
        )
        for record in read_records(path)
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
