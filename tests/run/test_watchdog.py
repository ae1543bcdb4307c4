"""Watchdog: what counts as hanging, and what is told of the rest. Whole runs: test_faults.py."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.topology import LEARNER, Role
from sfrl.records.timing import COMPONENT_STAGES
from sfrl.run import watchdog
from sfrl.run.crew import WorkerError
from sfrl.run.process_crew import ProcessCrew
from sfrl.run.roles import make_rollout_worker
from sfrl.run.watchdog import Watchdog
from sfrl.workers.worker import worker_loop
from tests.ledger import CheckingLearner


@pytest.fixture
def process():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


def looks(watched: Watchdog, seconds: float) -> list[str]:
    """What it says in this time."""
    complaints = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        complaints += watched.stalled().values()
        time.sleep(0.02)
    return complaints


def test_a_stopped_process_does_not_hang_but_is_told_of_once(
    make_shared, process, monkeypatch, caplog
):
    monkeypatch.setattr(watchdog, "_SUSPENSION_S", 0.5)
    monkeypatch.setattr(watchdog, "START_LIMIT_S", 1.0)
    shared = make_shared(
        env="CartPole-v1", frameskip=1, num_workers=1, batch_size=128, stall_timeout=1.0
    )
    watched = Watchdog(shared.config, shared.progress)
    process.send_signal(signal.SIGSTOP)
    watched.watch(LEARNER, process.pid)
    assert looks(watched, 2) == []
    [text] = [r.getMessage() for r in caplog.records if r.name == watchdog.__name__]
    assert text.startswith(f"learner (pid {process.pid}) has been stopped, or has waited")
    process.send_signal(signal.SIGCONT)
    assert looks(watched, 2)[0] == (
        "has not begun to work for 1 s (raise --stall-timeout above 1 to wait longer)"
    )


def test_a_learner_that_saves_does_not_hang_however_long_it_takes(make_shared, process):
    shared = make_shared(
        env="CartPole-v1", frameskip=1, num_workers=1, batch_size=128, stall_timeout=0.5
    )
    learner_laps = shared.progress.stage_seconds(LEARNER)
    watched = Watchdog(shared.config, shared.progress)
    watched.watch(LEARNER, process.pid)
    learner_laps += 1.0  # it has worked, and then stands still
    shared.progress.saving[0] = True
    assert looks(watched, 1.5) == []
    shared.progress.saving[0] = False
    assert looks(watched, 1.5)[0].startswith("has not got on for 0.5 s (stall_timeout=0.5;")


def test_of_two_workers_the_one_that_hangs_is_named_with_its_own_environment(make_shared, process):
    shared = make_shared(
        env="CartPole-v1", frameskip=1, num_workers=2, batch_size=128, env_timeout=0.3
    )
    watched = Watchdog(shared.config, shared.progress)
    for role in shared.topology.of_kind("rollout"):
        watched.watch(role, process.pid)
    shared.progress.stage_seconds(Role("rollout", 1))[:] = 1.0  # it has worked before
    shared.progress.stepping[1, 0] = 3
    found = {}
    while not found:
        found = watched.stalled()
        time.sleep(0.02)
    assert found.keys() == {Role("rollout", 1)}
    assert found[Role("rollout", 1)].startswith("has been in a step of env 3 of its split 0, CartP")


SLOW_START = {"env": "tests.faulty_env:SlowStart-v0", "frameskip": 1, "model": "mlp"}


def complaints_at_start(make_shared, num_envs: int, env_timeout: float) -> list[str]:
    """What is said of a rollout worker, in a thread of this process, until it has begun."""
    settings = {"num_workers": 1, "num_splits": 1, "batch_size": 32 * num_envs, "minibatches": 1}
    settings |= {"envs_per_worker": num_envs, "env_timeout": env_timeout}
    shared = make_shared(**SLOW_START, **settings)
    watched = Watchdog(shared.config, shared.progress)
    watched.watch(Role("rollout", 0), os.getpid())
    worker = threading.Thread(target=make_rollout_worker, args=(shared, 0, Mailbox()))
    worker.start()
    complaints = []
    while worker.is_alive():
        complaints += looks(watched, 0.1)
    return complaints


@pytest.mark.parametrize("num_envs", [1, 3])
def test_each_environment_has_its_own_time_to_start_and_to_reset(
    make_shared, monkeypatch, num_envs
):
    monkeypatch.setattr(watchdog, "START_LIMIT_S", 1.5)
    assert complaints_at_start(make_shared, num_envs, env_timeout=1.5) == []


def test_one_that_takes_too_long_to_start_is_told_with_the_flag(make_shared, monkeypatch):
    first = complaints_at_start(make_shared, 2, env_timeout=0.3)[0]
    assert first == (
        "has been making env 0 of its split 0, tests.faulty_env:SlowStart-v0, for 0.3 s "
        "(env_timeout=0.3; raise --env-timeout if it takes as long)"
    )


def test_a_wait_in_which_it_was_stopped_is_no_wait_for_the_others(make_shared, process):
    """Awake again, it tells all of that time as a wait for requests, as the others tell theirs."""
    shared = make_shared(
        env="CartPole-v1", frameskip=1, num_workers=1, batch_size=128, stall_timeout=0.5
    )
    watched = Watchdog(shared.config, shared.progress)
    rollout, policy = Role("rollout", 0), Role("policy", 0)
    # The policy worker is another process than the others, which nobody stops.
    for role, pid in {LEARNER: os.getpid(), rollout: os.getpid(), policy: process.pid}.items():
        watched.watch(role, pid)

    def seconds_of(role, stage):
        index = COMPONENT_STAGES[role.kind].index(stage)
        return shared.progress.stage_seconds(role)[index : index + 1]

    others = [seconds_of(LEARNER, "wait_trajectories"), seconds_of(rollout, "wait_actions")]
    forward, wait_requests = seconds_of(policy, "forward"), seconds_of(policy, "wait_requests")

    def verdict(seconds, *growing):
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(0.02)
            for stage in growing:
                stage += 0.02
            assert watched.stalled() == {}
            if deadlock := watched.deadlock():
                return deadlock

    forward += 1.0  # it has worked before
    assert verdict(0.1, *others) is None
    process.send_signal(signal.SIGSTOP)
    assert verdict(1.5, *others) is None
    process.send_signal(signal.SIGCONT)
    wait_requests += 1.5
    assert verdict(1.0, *others, forward) is None
    assert verdict(3.0, *others, wait_requests).startswith("no decision and no update for 0.5 s")


@pytest.mark.parametrize("is_threaded", [False, True])
def test_who_steps_does_not_wait_however_long_it_waited_before(make_shared, is_threaded):
    """What it does now is in none of its stages before it ends."""
    shared = make_shared(
        env="CartPole-v1", frameskip=1, num_workers=1, batch_size=128, stall_timeout=0.5
    )
    watched = Watchdog(shared.config, shared.progress)
    rollout = Role("rollout", 0)
    waits = {LEARNER: "wait_trajectories", rollout: "wait_actions", Role("policy", 0): ""}
    waits[Role("policy", 0)] = "wait_requests"
    for role in waits:
        watched.watch(role, os.getpid())

    def wait_for_s(seconds, roles, *, step=False):
        start_s = time.monotonic()
        while (passed_s := time.monotonic() - start_s) < seconds:
            time.sleep(0.02)
            if step:  # one copy after the other, or all of them in threads
                shared.progress.stepping[0] = 0 if is_threaded else int(passed_s / 0.3)
                env_step = COMPONENT_STAGES["rollout"].index("env_step")
                shared.progress.stage_seconds(rollout)[env_step] += 0.001 * is_threaded
            for role in roles:
                index = COMPONENT_STAGES[role.kind].index(waits[role])
                shared.progress.stage_seconds(role)[index] += 0.02
            watched.stalled()
        return watched.deadlock()

    assert wait_for_s(0.4, waits) is None
    assert wait_for_s(1.5, waits.keys() - {rollout}, step=True) is None
    shared.progress.stepping[0] = -1
    assert wait_for_s(1.0, waits).startswith("no decision and no update for 0.5 s")


class KeepingLearner(CheckingLearner):
    """Gives no slot back: in the end all are lost."""

    def step(self):
        taken = self.slots.take(1)
        self.timer.lap("gather")
        return bool(taken)


def keeping_body(shared, *_):
    worker_loop(KeepingLearner(shared), shared.stop)


def test_all_that_wait_for_each_other_are_named_and_the_run_ends(make_shared):
    shared = make_shared(
        env="tests.tiny_envs:Ledger-v0",
        frameskip=1,
        model="mlp",
        num_workers=2,
        envs_per_worker=4,
        rollout_length=4,
        batch_size=16,
        minibatches=1,
        stall_timeout=2.0,
    )
    crew = ProcessCrew(shared, {"learner": keeping_body})
    crew.start(None)

    def advance_for(seconds):
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            crew.advance()

    try:
        while not shared.buffer.is_filled.all():
            crew.advance()
        # One that is stopped does not wait: the others wait for it.
        policy = crew.pids[Role("policy", 0)]
        os.kill(policy, signal.SIGSTOP)
        advance_for(5)
        os.kill(policy, signal.SIGCONT)
        with pytest.raises(WorkerError) as failure:
            advance_for(30)
    finally:
        crew.kill()
        crew.stop(1.0)
    assert str(failure.value) == (
        "no decision and no update for 2 s (stall_timeout=2), since all wait for each other: "
        "learner for full slots, rollout-0 for a free slot, rollout-1 for a free slot, "
        "policy-0 for requests for actions"
    )
