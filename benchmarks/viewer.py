"""What a viewer of `sfrl web` costs the training, in A-B-B-A pairs.

    python -m benchmarks.viewer --pairs=10

A: nobody looks. B: `sfrl web` shows the run; a viewer asks for it every 4 seconds, as its page
does, and reads what its agent plays. The viewer is no browser, which would draw that as well. Run
it on an otherwise idle machine. The last line printed is JSON, with machine and commit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from scipy import stats

from benchmarks.runs import read_metrics, throughput
from benchmarks.side_by_side import IDLE_LOAD, ROOT, run
from sfrl.settings.machine import machine

_PAGE_S = 4.0  # between two looks of the page at a live run
_LIMIT_S = 60.0  # for an answer
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Args:
    pairs: int = 10
    """Of two runs with a viewer and two without."""
    seconds: float = 26.0
    """Time of each run, start-up included."""
    skipped: float = 12.0
    """Seconds at each run's start that do not count: processes start, the agent's as well."""
    flags: str = "--env=Pong --tune=off --precision=bfloat16"
    """For train.py."""


class Seen(NamedTuple):
    first_s: float  # after it was asked for, until the first picture came; NaN: none came
    pictures: int


def train(args: Args, folder: Path) -> float:
    """Frames/s of a run there."""
    flags = [f"--train-seconds={args.seconds}", f"--run-dir={folder}", "--report-seconds=1"]
    # Soon, so that the agent plays before its cost is measured.
    flags += [f"--checkpoint-seconds={args.skipped / 2}", *shlex.split(args.flags)]
    run([sys.executable, "train.py", *flags])
    points = read_metrics(folder / "metrics.jsonl")[:-1]
    return throughput([point for point in points if point.time_s >= args.skipped])


@contextlib.contextmanager
def viewer(folder: Path) -> Iterator[list[Seen]]:
    """Looks at the run there until the block ends, and then says what it saw."""
    command = [sys.executable, "-m", "sfrl", "web", str(folder.parent), "--port=0"]
    seen: list[Seen] = []
    is_over = threading.Event()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as web:
        assert web.stdout is not None
        url = web.stdout.readline().split()[-1]
        threads = [
            threading.Thread(target=_look, args=(f"{url}api/run?run={folder.name}", is_over)),
            threading.Thread(
                target=_watch, args=(f"{url}api/play?run={folder.name}", folder, is_over, seen)
            ),
        ]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            is_over.set()
            web.send_signal(signal.SIGINT)  # its answers end
            for thread in threads:
                thread.join()


def _look(url: str, is_over: threading.Event) -> None:
    while not is_over.wait(_PAGE_S):
        with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:
            answer.read()


def _watch(url: str, folder: Path, is_over: threading.Event, seen: list[Seen]) -> None:
    while not (folder / "config.json").exists():  # before, there is no run to watch
        if is_over.wait(_POLL_S):
            return
    start_s, first_s, pictures = time.monotonic(), math.nan, 0
    with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:
        for line in answer:
            if line.startswith(b"data: ") and json.loads(line[6:]).get("picture"):
                pictures += 1
                first_s = time.monotonic() - start_s if pictures == 1 else first_s
    seen.append(Seen(first_s, pictures))


def main(args: Args) -> None:
    if (load := os.getloadavg()[0]) > IDLE_LOAD:
        print(f"the machine is busy (load {load:.1f}): figures will be low", file=sys.stderr)
    rates: list[list[float]] = []
    all_seen: list[Seen] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        for _ in range(args.pairs):
            rates.append([])
            for is_viewed in (False, True, True, False):
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.ExitStack() as stack:
                    seen = stack.enter_context(viewer(folder)) if is_viewed else []
                    rates[-1].append(train(args, folder))
                print(f"{'B' if is_viewed else 'A'}: {rates[-1][-1]:.0f} {seen}", flush=True)
                all_seen += seen
    ratios = [(b1 + b2) / (a1 + a2) for a1, b1, b2, a2 in rates]
    mean, half = statistics.mean(ratios), math.nan
    if len(ratios) > 1:
        error = statistics.stdev(ratios) / math.sqrt(len(ratios))
        half = float(stats.t.ppf(0.975, len(ratios) - 1)) * error
    print(
        f"with a viewer: {mean:.3f} of the frames/s (95%: {mean - half:.3f} to {mean + half:.3f})"
    )
    result = {
        "bench": "viewer",
        **machine(),
        **asdict(args),
        "frames_per_s": [[round(rate) for rate in pair] for pair in rates],
        "seen": [seen._asdict() for seen in all_seen],
        "ratios": [round(ratio, 4) for ratio in ratios],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args))
