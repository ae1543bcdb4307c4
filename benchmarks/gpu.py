"""What a GPU makes of training: the whole comparison, and a short table of it, within a time limit.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --flags="--env=Breakout" --score=30

Where the frames go, with NatureCNN and with IMPALA's residual network; without CUDA graphs; with
both networks in one process; and a run of the defaults until it scores, or its time is over. It
runs without a GPU as well. The last line printed is JSON. benchmarks/gpu.sh does all of it on a
bare machine, after the tests.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import layouts
from benchmarks.runs import read_metrics
from benchmarks.side_by_side import ROOT, run
from sfrl.settings.machine import machine

ONE_EPOCH = ("--loss=vtrace", "--epochs=1")  # of all parts but the score; Atari has NatureCNN then
HOST_BATCH = 256  # rows of the inference whose time on the host is told
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Args:
    flags: str = "--env=Pong"
    """Flags for train.py and the benchmark."""
    seconds: float = 2.0
    """Length of a window of the benchmark."""
    score: float = 18.0
    """The run ends at this mean return of 100 episodes."""
    score_seconds: float = 100.0
    """Time of that run, at most."""


def bench(args: Args, part: str, flags: Sequence[str]) -> dict[str, Any]:
    """The JSON object of `sfrl bench`, whose table is printed.

    Raises RuntimeError if it failed.
    """
    command = [sys.executable, "-m", "sfrl", "bench", part, f"--seconds={args.seconds}"]
    output = run([*command, *shlex.split(args.flags), *flags]).splitlines()
    print(f"\n--- sfrl bench {part} {shlex.join(flags)}", *output[:-1], sep="\n", flush=True)
    result: dict[str, Any] = json.loads(output[-1])
    return result


def settings_found(whole: dict[str, Any]) -> list[str]:
    """Flags for what the first part's tuner has chosen, so that the other parts need not tune."""
    settings = whole["machine"]["settings"]
    names = (
        *("num_workers", "envs_per_worker", "num_splits", "num_policy_workers", "torch_threads"),
        *("precision", "batch_size", "minibatches"),
    )
    return ["--tune=off", *(f"--{name.replace('_', '-')}={settings[name]}" for name in names)]


def network_cores(training: dict[str, Any]) -> float:
    """Cores that policy workers and learner keep busy."""
    core_us = training["components"]["core_us"]["training"]
    networks_us = sum(us for name, us in core_us.items() if name.startswith(("policy", "learner")))
    cores: float = networks_us * training["training"]["decisions_per_s"] / 1e6
    return cores


def inference_host_us(whole: dict[str, Any]) -> tuple[int, float]:
    """Rows and processor time of the batch nearest to `HOST_BATCH`, in the faster precision."""
    cases = whole["components"]["inference_alone"]
    nearest = min(cases, key=lambda c: (abs(c["batch_size"] - HOST_BATCH), c["batch_us"]))
    return nearest["batch_size"], nearest["host_us"]


def minutes_to_score(
    args: Args, flags: Sequence[str], seconds: float
) -> tuple[float | None, float | None]:
    """When a run has the score, counted from its command, and its best score by then."""
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        limits = [f"--run-dir={run_dir}", "--report-seconds=1", f"--train-seconds={seconds}"]
        process = subprocess.Popen(
            [sys.executable, "train.py", *shlex.split(args.flags), *flags, *limits],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        best, reached_s = None, None
        while process.poll() is None and reached_s is None:
            time.sleep(POLL_S)
            points = read_metrics(run_dir / "metrics.jsonl")
            scored = [(p.time_s, p.score) for p in points if p.score is not None]
            best = max((score for _, score in scored), default=None)
            reached_s = min((s for s, score in scored if score >= args.score), default=None)
        process.send_signal(signal.SIGINT)
        process.wait()
    return (None if reached_s is None else reached_s / 60), best


def row(what: str, value: str, must: str = "", aim: str = "") -> None:
    print(f"{what:52}{value:>14}{must:>10}{aim:>10}", flush=True)


def main(args: Args) -> None:
    where = machine()
    print(where, flush=True)
    whole = bench(args, "all", ONE_EPOCH)
    training = whole["training"]["frames_per_s"]
    found = settings_found(whole)
    minutes, best = minutes_to_score(args, found, args.score_seconds)
    others: dict[str, float | None] = {}
    for name, flag in (
        ("CUDA graphs off", "--cuda-graphs=off"),
        ("IMPALA's ResNet", "--model=impala_resnet"),
    ):
        try:
            result = bench(args, "training", [*found, *ONE_EPOCH, flag])
            others[name] = result["training"]["frames_per_s"]
        except RuntimeError as error:  # the rest is still worth its time
            print(error, flush=True)
            others[name] = None
    config = layouts.read_config(shlex.join([*shlex.split(args.flags), *found, *ONE_EPOCH]))
    layout_rates = {}
    if config.num_policy_workers == 1:
        for layout in ("processes", "threads"):
            layout_rates[layout] = layouts.frames_per_s(config, layout, args.seconds, windows=3)

    rows, host_us = inference_host_us(whole)
    print(f"\n{args.flags} on {where['cores']} cores and {where['gpu'] or 'no GPU'}")
    row("", "seen", "must", "aim")
    row("training / simulation", f"{whole['efficiency']:.2f}", "0.85", "0.93")
    row("sampling / simulation", f"{whole['sampling_efficiency']:.2f}")
    row("training, frames/s", f"{training:,.0f}", "130,000", "170,000")
    row("cores of policy workers and learner", f"{network_cores(whole):.2f}", "1.5", "1")
    for name, rate in others.items():
        share = "failed" if rate is None else f"{rate / training:.2f}"
        limits = ("0.9", "0.98") if "IMPALA" in name else ("", "")
        row(f"{name}, share of these frames/s", share, *limits)
    if layout_rates:
        share = f"{layout_rates['threads'] / layout_rates['processes']:.2f}"
        row("both networks in one process, share of frames/s", share)
    row(f"host time of an inference of {rows} rows, us", f"{host_us:.0f}", "300", "150")
    shown = f"{minutes:.1f}" if minutes is not None else f"best {best}"
    row(f"minutes to a score of {args.score:g}", shown, "4", "1.5")
    result = {
        "bench": "gpu",
        **where,
        **asdict(args),
        "whole": whole,
        "frames_per_s": others,
        "layouts": layout_rates,
        "minutes_to_score": minutes,
        "best_score": best,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args))
