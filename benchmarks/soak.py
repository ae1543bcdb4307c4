"""Pong and CartPole together for an hour, workers killed at random: does anything grow or get lost?

    python -m benchmarks.soak  # 60 minutes, as `make soak`
    python -m benchmarks.soak --minutes=3 --settle-minutes=1

Every `sample_seconds` it notes each run's memory (PSS of all its processes), open files and frames.
Now and then it kills a rollout worker of Pong; CartPole is left alone, so that it must not lose a
single decision. Ends with a table, a JSON object, and exit code 1 if something was not as it must.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import tyro

from sfrl.run.restarts import STEADY_S
from sfrl.runs.reader import read_records

ROOT = Path(__file__).parents[1]
STOP_S = 60.0
WELL_S = 10.0 + STEADY_S  # to start and to become well: one that dies before then is kept waiting


@dataclass(frozen=True)
class Args:
    minutes: float = 60.0
    settle_minutes: float = 5.0
    """What comes before is not compared: memory still fills up, and Pong's episodes get longer."""
    sample_seconds: float = 5.0
    kill_seconds: float = 30.0
    """Mean time between two kills; at random, exponentially distributed. None is killed twice
    within `WELL_S`, as its restart would wait then."""
    memory_tolerance: float = 0.02
    """How much the median of the last third may lie above that of the first, after settling."""
    speed_tolerance: float = 0.15
    """How much the frames/s of the last third may lie below those of the first."""
    standstill_seconds: float = 10.0
    """Two reports, within which a killed worker must be back."""
    seed: int = 1
    run_dir: str = ""
    """Where the runs go. Empty: a temporary folder, which is removed."""


@dataclass
class Run:
    """One training under watch. Samples are one per `sample_seconds`, after settling."""

    name: str
    run_dir: Path
    process: subprocess.Popen[str]
    kills: int = 0
    pss_mib: list[float] = field(default_factory=list)
    num_files: list[float] = field(default_factory=list)
    frames: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    def processes(self) -> list[psutil.Process]:
        trainer = psutil.Process(self.process.pid)
        return [trainer, *trainer.children(recursive=True)]

    def sample(self) -> None:
        """Note how it is now; nothing while one of its processes comes or goes."""
        try:
            processes = self.processes()
            pss = sum(p.memory_full_info().pss for p in processes)
            files = sum(p.num_fds() for p in processes)
        except psutil.Error:
            return
        if records := self.records():
            self.pss_mib.append(pss / 2**20)
            self.num_files.append(files)
            self.frames.append(records[-1]["env_frames"])
            self.times_s.append(records[-1]["time_s"])

    def records(self) -> list[dict[str, float]]:
        """What is null, because there is nothing to tell yet, counts as 0."""
        records = read_records(self.run_dir / "metrics.jsonl")
        return [{name: value or 0 for name, value in record.items()} for record in records]

    def told_as_discarded(self) -> int:
        """Decisions that the successors of killed workers say they have discarded."""
        log = (self.run_dir / "log.txt").read_text()
        return sum(map(int, re.findall(r"discards (\d+) decisions of its predecessor", log)))

    def longest_standstill_s(self) -> float:
        """Of the reports after the first frames: the longest time in which no frame was added."""
        longest_s, since_s, frames = 0.0, None, 0.0
        for record in self.records():
            if record["env_frames"] > frames:
                frames, since_s = record["env_frames"], record["time_s"]
            elif since_s is not None:
                longest_s = max(longest_s, record["time_s"] - since_s)
        return longest_s

    def kill_a_worker(self, rng: random.Random) -> bool:
        """One that is well, if there is any; says whether."""
        try:
            workers = [p for p in self.processes() if "sfrl rollout-" in " ".join(p.cmdline())]
            well = [p for p in workers if time.time() - p.create_time() > WELL_S]
        except psutil.Error:  # one comes or goes
            return False
        if well:
            rng.choice(well).kill()
            self.kills += 1
        return bool(well)


def start(name: str, env: str, folder: Path, *flags: str) -> Run:
    run_dir = folder / name
    command = [sys.executable, str(ROOT / "train.py"), f"--env={env}", f"--run-dir={run_dir}"]
    flags = ("--max-worker-restarts=100000", "--train-frames=0", "--lr-schedule=constant", *flags)
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    return Run(name, run_dir, process)


def thirds(values: list[float]) -> tuple[float, float]:
    """Medians of the first third and of the last."""
    first, *_, last = np.array_split(np.array(values), 3)
    return float(np.median(first)), float(np.median(last))


def judge(run: Run, args: Args) -> tuple[dict[str, float], list[str]]:
    """Figures of a run that has ended, and what is not as it must be."""
    last = run.records()[-1]
    pss = thirds(run.pss_mib)
    files = thirds(run.num_files)
    seconds = np.diff(run.times_s)
    rates = np.diff(run.frames)[seconds > 0] / seconds[seconds > 0]
    rate = thirds(rates.tolist())
    standstill_s = run.longest_standstill_s()
    config = json.loads((run.run_dir / "config.json").read_text())
    in_a_worker = config["rollout_length"] * config["envs_per_worker"]
    figures = {
        "pss_mib_first": pss[0],
        "pss_mib_last": pss[1],
        "files_first": files[0],
        "files_last": files[1],
        "frames_per_s_first": rate[0],
        "frames_per_s_last": rate[1],
        "longest_standstill_s": standstill_s,
        "frames": last["env_frames"],
        "kills": run.kills,
        "restarts": last["worker_restarts"],
        "discarded": last["discarded_steps"],
        "told_as_discarded": run.told_as_discarded(),
        "exit_code": run.process.returncode,
    }
    rules = {
        f"memory grew by more than {args.memory_tolerance:.0%}": pss[1]
        <= pss[0] * (1 + args.memory_tolerance),
        "files were left open": files[1] <= files[0] + 2,
        f"it became slower by more than {args.speed_tolerance:.0%}": rate[1]
        >= rate[0] * (1 - args.speed_tolerance),
        f"it stood still for more than {args.standstill_seconds:g} s": standstill_s
        <= args.standstill_seconds,
        "not every kill was followed by a restart": last["worker_restarts"] == run.kills,
        "decisions were lost without a kill, or more than a worker held": 0
        <= last["discarded_steps"]
        <= run.kills * in_a_worker,
        # The counters know it as what was produced and neither learned nor in flight.
        "discarded decisions are not those that successors tell of": last["discarded_steps"]
        == run.told_as_discarded(),
        "reports were dropped": last["dropped_reports"] == 0,
        "disk writes failed": last["write_failures"] == 0,
        "it did not end with exit code 0": run.process.returncode == 0,
    }
    return figures, [f"{run.name}: {text}" for text, holds in rules.items() if not holds]


def watch(args: Args, folder: Path) -> list[Run]:
    """Both runs from start to end."""
    rng = random.Random(args.seed)
    runs = [
        start("pong", "Pong", folder),
        start("cartpole", "CartPole-v1", folder),
    ]
    started_s = time.monotonic()
    next_kill_s = args.settle_minutes * 60 / 2
    try:
        while (passed_s := time.monotonic() - started_s) < args.minutes * 60:
            time.sleep(args.sample_seconds)
            if passed_s > args.settle_minutes * 60:
                for run in runs:
                    run.sample()
            is_due = passed_s > next_kill_s and args.minutes * 60 - passed_s > STOP_S / 2
            if is_due and runs[0].kill_a_worker(rng):
                next_kill_s = passed_s + rng.expovariate(1 / args.kill_seconds)
            if any(run.process.poll() is not None for run in runs):
                break
    finally:
        for run in runs:
            run.process.send_signal(signal.SIGINT)
        for run in runs:
            try:
                run.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                run.process.kill()  # its exit code tells
                run.process.wait()
    return runs


def main(args: Args) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        runs = watch(args, Path(args.run_dir or temporary))
        results = {run.name: judge(run, args) for run in runs}
    names = next(iter(results.values()))[0]
    print(f"{'':20}" + "".join(f"{name:>14}" for name in results))
    for name in names:
        row = "".join(f"{figures[name]:14,.0f}" for figures, _ in results.values())
        print(f"{name:20}{row}")
    problems = [problem for _, found in results.values() for problem in found]
    print("\n".join(problems) or "nothing grew, nothing was lost")
    print(json.dumps({name: figures for name, (figures, _) in results.items()}))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
