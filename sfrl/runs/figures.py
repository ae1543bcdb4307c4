"""The figures of a run as it is: what `sfrl status`, `sfrl list` and the web page tell."""

from __future__ import annotations

import time
from contextlib import suppress

from sfrl.records.bottleneck import limit_of
from sfrl.runs.reader import Run


def figures(run: Run) -> dict[str, object]:
    """By name, for programs; None where there is nothing to tell yet."""
    last, paced = run.last, run.interval[1]
    left_s, is_serial = _seconds_left(run), run.settings.get("serial") is True
    return {
        "name": run.name,
        "folder": str(run.folder),
        "env": run.env,
        "system": run.system,
        "seed": run.settings.get("seed"),
        "state": run.state,
        "time_s": last.get("time_s"),
        "seconds_left": left_s,
        "env_frames": last.get("env_frames"),
        "frames_per_s": last.get("frames_per_s" if run.is_live else "frames_per_s_average"),
        "episodes": last.get("episodes"),
        "episode_return_mean": last.get("episode_return_mean"),
        "best_episode_return_mean": last.get("best_episode_return_mean"),
        "episode_length_mean": last.get("episode_length_mean"),
        "checkpoint": str(run.checkpoints[0]) if run.checkpoints else None,
        "checkpoint_age_s": _checkpoint_age_s(run),
        "tuned": run.settings.get("tuned") or None,
        "limit": limit_of(paced, is_serial=is_serial),
        "shares": {name: share for name, share in paced.items() if name.endswith("/working")},
    }


def _checkpoint_age_s(run: Run) -> float | None:
    for path in run.checkpoints[:1]:
        with suppress(FileNotFoundError):  # a live run has removed it since
            return max(0.0, time.time() - path.stat().st_mtime)
    return None


def _seconds_left(run: Run) -> float | None:
    """Of a live run: to --train-frames at its average rate, or to --train-seconds.

    The latter count from a resumed run's start, which its records do not tell.
    """
    left, last = [], run.last
    frames, rate = run.number("train_frames"), last.get("frames_per_s_average")
    if frames and rate:
        left.append((frames - (last.get("env_frames") or 0)) / rate)
    if run.number("train_seconds") and not run.settings.get("resume"):
        left.append(run.number("train_seconds") - (last.get("time_s") or 0))
    return max(0.0, min(left)) if run.is_live and left else None
