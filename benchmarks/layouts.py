"""Policy worker and learner in two processes, in one with two threads, or in one by turns.

    python -m benchmarks.layouts
    python -m benchmarks.layouts --rounds=3 --flags="--env=Breakout --loss=vtrace --tune=off"

The layouts train in turn, each for `--seconds` after a warm-up, with the same rollout workers. Only
the first is what train.py does; the others are built here, from the same workers. By turns means
that the policy answers what waits before every optimizer step. The last line printed is JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, get_args

import tyro

import envs
from sfrl import cli, crew, defaults
from sfrl.crew import Shared
from sfrl.learner import Learner, Minibatch
from sfrl.machine import machine
from sfrl.process import CheckpointRequest, Mailbox, Report, Worker, run_child, worker_loop
from sfrl.shared_memory import unlink_segments

Layout = Literal["processes", "threads", "turns"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
POLL_S, STOP_TIMEOUT_S = 0.1, 8.0
TURN_WAIT_S = 0.001  # the one that waits by turns hears only the rollout workers

Body = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Args:
    flags: str = "--env=Pong"
    """Flags for train.py."""
    seconds: float = 15.0
    """Time that is measured of each run."""
    warm_up: float = 10.0
    """Time before, start-up included."""
    rounds: int = 2
    """Runs of each; its result is their median."""


class Turns:
    """The learner, which lets the policy worker answer before every optimizer step."""

    def __init__(self, policy: Worker, learner: Learner) -> None:
        self.policy = policy
        self.learner = learner
        self.update = learner._update
        learner._update = self.answer_and_update  # type: ignore[method-assign]

    def answer_and_update(self, *batch: Minibatch) -> object:
        self.policy.step()
        return self.update(*batch)

    def step(self) -> bool:
        has_acted = self.policy.step()
        return self.learner.step() or has_acted

    def wait(self, timeout_s: float) -> None:
        self.policy.wait(min(timeout_s, TURN_WAIT_S))

    def close(self) -> None:
        self.learner.close()


def networks(shared: Shared, reports: Mailbox[Report], layout: Layout) -> None:
    """The process of policy worker and learner."""
    requests: Mailbox[CheckpointRequest] = Mailbox()
    learner = crew.make_learner(shared, reports, requests, None)
    policy = crew.make_policy_worker(shared, 0)
    if layout == "turns":
        assert isinstance(learner, Learner)
        worker_loop(Turns(policy, learner), shared.stop)
        return
    thread = threading.Thread(target=worker_loop, args=(policy, shared.stop))
    thread.start()
    worker_loop(learner, shared.stop)
    thread.join()


def processes(shared: Shared, layout: Layout) -> dict[str, tuple[Mailbox[Report], Body]]:
    """Name -> mailbox and body of every process."""
    mailbox: Mailbox[Report] = Mailbox()
    bodies: dict[str, tuple[Mailbox[Report], Body]] = {}
    if layout == "processes":
        requests: Mailbox[CheckpointRequest] = Mailbox()
        bodies["learner"] = (
            mailbox,
            partial(crew._learner_body, shared, mailbox, requests, None),
        )
        bodies["policy"] = (Mailbox(), partial(crew._policy_body, shared, 0))
    else:
        bodies["networks"] = (mailbox, partial(networks, shared, mailbox, layout))
    for i in range(shared.config.num_workers):
        mailbox = Mailbox()
        bodies[f"rollout-{i}"] = (mailbox, partial(crew._rollout_body, shared, i, mailbox))
    return bodies


def frames_per_s(args: Args, layout: Layout) -> float:
    """One run's throughput."""
    config = cli.parse([*shlex.split(args.flags), "--tune=off", "--run-dir=unused"])
    spec = envs.describe(config.env, config.frameskip)
    shared = crew.make_shared(defaults.resolve(config, spec), spec)
    context = multiprocessing.get_context("spawn")
    bodies = processes(shared, layout)
    running = [
        context.Process(name=name, target=run_child, args=(name, mailbox, body))
        for name, (mailbox, body) in bodies.items()
    ]

    def steps_after(seconds: float) -> int:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(POLL_S)
            for mailbox, _ in bodies.values():
                mailbox.get_all()
            if any(process.exitcode is not None for process in running):
                raise RuntimeError(f"{layout}: a process ended; --flags may be wrong")
        return shared.progress.total_env_steps

    try:
        for process in running:
            process.start()
        before, start_s = steps_after(args.warm_up), time.monotonic()
        decisions = steps_after(args.seconds) - before
        return decisions * spec.frameskip / (time.monotonic() - start_s)
    finally:
        shared.stop.set()
        shared.channels.wake_all()
        for process in running:
            process.join(STOP_TIMEOUT_S)
            process.kill()
        unlink_segments(os.getpid())


def main(args: Args) -> None:
    rates: dict[Layout, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(args.rounds):
        for layout in LAYOUTS:
            rates[layout].append(frames_per_s(args, layout))
            print(f"{layout:10} {rates[layout][-1]:8,.0f} frames/s", flush=True)
    medians = {layout: statistics.median(of) for layout, of in rates.items()}
    for layout, rate in medians.items():
        print(f"{layout:10} {rate / medians['processes']:5.2f} of two processes")
    print(json.dumps({"bench": "layouts", **machine(), **asdict(args), "frames_per_s": rates}))


if __name__ == "__main__":
    main(tyro.cli(Args))
