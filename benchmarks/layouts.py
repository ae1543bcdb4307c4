"""Policy worker and learner in two processes, in one with two threads, or in one by turns.

    python -m benchmarks.layouts
    python -m benchmarks.layouts --rounds=3 --flags="--env=Breakout --loss=vtrace --epochs=1"

The layouts train in turn with the same workers and settings (--flags, else the defaults; nothing is
tuned). train.py has the first; the others are built here. By turns means that the policy answers
what waits before every optimizer step. The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import threading
import traceback
from dataclasses import asdict, dataclass
from functools import partial

import tyro

from sfrl import envs
from sfrl.bench.run import measure_run
from sfrl.commands.train import parse
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, Report
from sfrl.ipc.shared_memory import StopFlag
from sfrl.ipc.topology import Role
from sfrl.records.timing import Kind
from sfrl.run.process_crew import Body
from sfrl.run.roles import Shared, make_learner, make_policy_worker
from sfrl.settings.config import Config
from sfrl.settings.machine import machine
from sfrl.workers.worker import Worker, worker_loop

POLL_S = 0.1
TURN_WAIT_S = 0.001  # it can sleep for requests or for slots, and must look at the other


@dataclass(frozen=True, kw_only=True)
class Args:
    flags: str = "--env=Pong"
    """Flags for train.py."""
    seconds: float = 5.0
    """Length of a window."""
    windows: int = 3
    """Windows of each run; its result is their median."""
    rounds: int = 2
    """Runs of each layout."""


class Turns:
    """The learner, which lets the policy worker answer before every optimizer step."""

    def __init__(self, learner: Worker, policy: Worker) -> None:
        self.learner, self.policy = learner, policy

    def step(self) -> bool:
        has_acted = self.policy.step()
        return self.learner.step() or has_acted

    def wait(self, timeout_s: float) -> None:
        self.policy.wait(min(timeout_s, TURN_WAIT_S))

    def close(self) -> None:
        self.learner.close()


def run_or_exit(worker: Worker, stop: StopFlag) -> None:
    """The loop of a thread whose failure must end the process."""
    try:
        worker_loop(worker, stop)
    except Exception:
        traceback.print_exc()
        os._exit(1)


def networks_body(
    takes_turns: bool,
    shared: Shared,
    first: Role,
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
) -> None:
    """The learner's process, with the policy worker in it."""
    learner = make_learner(shared, reports, requests, resume_path)
    policy = make_policy_worker(shared, 0)
    if takes_turns:
        worker_loop(Turns(learner, policy), shared.stop)
    else:
        acting = threading.Thread(target=run_or_exit, args=(policy, shared.stop), daemon=True)
        acting.start()
        worker_loop(learner, shared.stop)
        acting.join()  # torch aborts a process that exits while a thread is inside it


def idle_body(shared: Shared, *_: object) -> None:
    """The policy worker's process, which has nothing to do."""
    done = threading.Event()
    while not shared.stop.is_set:
        done.wait(POLL_S)


LAYOUTS: dict[str, dict[Kind, Body]] = {
    "processes": {},
    "threads": {"learner": partial(networks_body, False), "policy": idle_body},
    "turns": {"learner": partial(networks_body, True), "policy": idle_body},
}


def read_config(flags: str) -> Config:
    """The settings, untuned. Raises ValueError for more than the one policy worker built here."""
    config = parse([*shlex.split(flags), "--tune=off", "--run-dir=unused"])
    if config.num_policy_workers != 1:
        raise ValueError(f"num_policy_workers={config.num_policy_workers} must be 1 here")
    return config


def frames_per_s(config: Config, layout: str, seconds: float, windows: int) -> float:
    """One run's throughput, once it has trained on two batches."""
    spec = envs.describe(config.env, config.env_options)
    figures = measure_run(config, spec, seconds, windows, 0.0, LAYOUTS[layout])
    if figures.learner_us is None:
        raise RuntimeError(f"{layout}: the learner has trained on nothing; raise --seconds")
    return statistics.median(figures.decisions_per_s) * spec.frameskip


def main(args: Args) -> None:
    config = read_config(args.flags)
    rates: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(args.rounds):
        for layout, runs in rates.items():
            runs.append(frames_per_s(config, layout, args.seconds, args.windows))
            print(f"{layout:10} {runs[-1]:8,.0f} frames/s", flush=True)
    medians = {layout: statistics.median(runs) for layout, runs in rates.items()}
    for layout, rate in medians.items():
        print(f"{layout:10} {rate / medians['processes']:5.2f} of two processes")
    print(json.dumps({"bench": "layouts", **machine(), **asdict(args), "frames_per_s": rates}))


if __name__ == "__main__":
    from benchmarks import layouts  # a process is told its body by the name of a module

    layouts.main(tyro.cli(layouts.Args))
