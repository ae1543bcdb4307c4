"""Rollout workers that die at any moment, and the ones that take their place."""

import gc
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from sfrl.experience import slot_inbox, trajectory_buffer
from sfrl.ipc import progress
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import Report
from sfrl.ipc.topology import Role
from sfrl.run import restarts
from sfrl.run.crew import WorkerError
from sfrl.run.process_crew import ProcessCrew
from sfrl.run.roles import Shared, make_policy_worker, make_rollout_worker
from sfrl.workers import rollout_worker
from sfrl.workers.members import Members
from sfrl.workers.rollout_worker import RolloutWorker
from sfrl.workers.worker import worker_loop
from tests.killing import killed_at
from tests.ledger import CheckingLearner

T, N = 4, 2
LEDGER = {
    "env": "tests.tiny_envs:Ledger-v0",
    "frameskip": 1,
    "num_workers": 1,
    "num_splits": 2,
    "envs_per_worker": 2 * N,
    "slots_per_split": 2,
    "rollout_length": T,
    "batch_size": T * N,
    "minibatches": 1,
    "model": "mlp",
    "precision": "float32",
    "debug_buffers": True,
}


ACTORS = {
    "system": "impala",
    "loss": "vtrace",
    "num_splits": 1,
    "envs_per_worker": N,
    "stall_timeout": 1000,  # each start imports torch, and the stand-in's times stand still
}
CENTRAL = {"system": "seed", "loss": "vtrace"}
BUNDLES = ACTORS | {"system": "a3c", "slots_per_split": 1, "epochs": 1, "optimizer": "rmsprop"}


def assert_accounts_are_right(shared: Shared) -> None:
    """No counter contradicts another, wherever a worker was killed."""
    buffer, counted = shared.buffer, shared.progress
    in_flight = np.where(buffer.is_filled, counted.env_steps[:-1] - counted.begun_steps, 0)
    assert (in_flight >= 0).all()
    assert (in_flight <= T * N).all()
    produced = counted.total_env_steps
    discarded = counted.discarded_steps(buffer.is_filled)
    assert discarded >= 0
    assert produced == counted.learned_steps.sum() + discarded + in_flight.sum()


# --- in one thread, killed at every line ---

SOURCES = (rollout_worker, progress, trajectory_buffer)


class Serial:
    """One rollout worker at a time, the policy worker and the learner, in this thread."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.learner = CheckingLearner(shared)
        self.policy = make_policy_worker(shared, 0)
        self.worker: RolloutWorker

    def start_worker(self) -> None:
        self.worker = make_rollout_worker(self.shared, 0, Mailbox())

    def others_step(self) -> bool:
        return self.policy.step() | self.learner.step()

    def play(self, rows: int) -> None:
        goal = self.learner.num_rows + rows
        while self.learner.num_rows < goal:
            progressed = [self.worker.step(), self.others_step()]
            assert any(progressed), "a slot or a message is lost"
            assert_accounts_are_right(self.shared)
            learned = self.shared.progress.learned_steps.sum()
            assert learned == self.learner.num_decisions, "the learner's own count"


# By default every third line; with -m kills each.
STRIDES = pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.kills)])


@STRIDES
def test_a_worker_may_die_at_any_line(make_shared, stride):
    """It dies in the middle of its work; the next one, while it takes over; then all goes on."""
    shared = make_shared(**LEDGER)
    run = Serial(shared)
    run.start_worker()
    run.play(8 * T * N)
    assert shared.progress.discarded_steps(shared.buffer.is_filled) == 0

    def live() -> None:
        for _ in range(2 * T):  # two slots end meanwhile, and two begin
            run.worker.step()
            while run.policy.step():
                pass

    line = 0
    while killed_at(line, live, SOURCES):
        if line % 2:  # the answers to the dead one come at once, or only to its successor
            while run.others_step():
                pass
        assert_accounts_are_right(shared)
        shared.progress.restarts[0] += 1
        if killed_at(line % 199, run.start_worker, SOURCES):
            assert_accounts_are_right(shared)
            shared.progress.restarts[0] += 1
            run.start_worker()
        run.learner.filled.clear()
        run.play(8 * T * N)
        assert set(run.learner.filled.values()) == {1}, "no filling is received twice"
        received = {slot for slot, _ in run.learner.filled}
        assert received == set(range(shared.config.num_slots)), "no slot is lost"
        line += stride
    assert line > 300


@STRIDES
def test_a_process_that_plays_acts_and_learns_may_die_at_any_line(make_shared, stride):
    """The learner dies with its worker: what it had taken is lost, and no slot is."""
    settings = {"num_splits": 1, "envs_per_worker": N, "slots_per_split": 1}
    shared = make_shared(**LEDGER | BUNDLES | settings | {"num_workers": 1})
    members: list = []
    rows = 0

    def start() -> None:
        nonlocal rows
        rows += members[2].num_rows if members else 0
        learner = CheckingLearner(shared)
        policy = make_policy_worker(shared, 0, learner)
        members[:] = [make_rollout_worker(shared, 0, Mailbox()), policy, learner]

    def play(num_rows: int) -> None:
        goal = members[2].num_rows + num_rows
        while members[2].num_rows < goal:
            steps = [member.step() for member in members]
            assert any(steps), "a slot or a message is lost"
            assert_accounts_are_right(shared)

    def live() -> None:
        for _ in range(4 * T):
            for member in members:
                member.step()

    start()
    line = 0
    while killed_at(line, live, (*SOURCES, slot_inbox)):
        assert_accounts_are_right(shared)
        shared.progress.restarts[0] += 1
        if killed_at(line % 149, start, SOURCES):
            assert_accounts_are_right(shared)
            shared.progress.restarts[0] += 1
            start()
        play(3 * T * N)
        assert set(members[2].filled.values()) == {1}, "no filling is received twice"
        line += stride
    assert line > 300
    assert shared.progress.learned_steps.sum() >= 300 // stride


def test_a_late_answer_and_the_successors_find_room_in_one_queue(make_shared):
    """As few slots as there may be: one of one split."""
    settings = {"num_splits": 1, "envs_per_worker": N, "slots_per_split": 1}
    shared = make_shared(**LEDGER | settings)
    assert shared.config.num_slots == 1
    run = Serial(shared)
    for _ in range(5):
        run.start_worker()  # asks, and dies
        while run.others_step():  # the answer comes before anybody has looked at the last one
            pass
        shared.progress.restarts[0] += 1
    run.start_worker()
    run.play(4 * T * N)


def test_requests_of_many_dead_do_not_fill_the_queue(make_shared):
    """The policy worker is stopped while one worker after the other asks, and dies."""
    shared = make_shared(**LEDGER)
    run = Serial(shared)
    for _ in range(20):
        run.start_worker()
        run.worker.step()
        shared.progress.restarts[0] += 1
    run.start_worker()
    run.play(8 * T * N)


# --- through real processes, killed at any moment ---


def checking_body(shared: Shared, first: Role, reports: Mailbox[Report], *_: object) -> None:
    """The process of a learner, and of whoever shares it, with one that checks in its place."""
    made = {}
    members = sorted(shared.topology.processes[first], key=lambda role: role.kind)
    for role in members:  # a learner comes first, and environments last
        match role.kind:
            case "learner":
                made[role] = learner = CheckingLearner(shared, role.index)
            case "policy":
                made[role] = make_policy_worker(shared, role.index, learner)
            case "rollout":
                made[role] = make_rollout_worker(shared, role.index, reports)
    workers = [made[role] for role in shared.topology.processes[first]]
    worker_loop(Members(workers), shared.stop)


@pytest.fixture
def make_crew(make_shared):
    """A crew whose learner checks every row; it is stopped at the end, and must not complain."""
    crews = []

    def make(**settings: object) -> tuple[ProcessCrew, Shared]:
        shared = make_shared(**{**LEDGER, "num_workers": 2, "slots_per_split": 3, **settings})
        with_learners = next(r for r in shared.topology.processes if shared.topology.learners_in(r))
        crew = ProcessCrew(shared, {with_learners.kind: checking_body})
        crews.append(crew)
        crew.start(None)
        return crew, shared

    yield make
    for crew in crews:
        crew.kill()
        crew.stop(1.0)


def advance_until(crew: ProcessCrew, is_done: Callable[[], object], timeout_s: float = 90) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        crew.advance()
        crew.take_reports()
        assert time.monotonic() < deadline_s


def all_slots_move_on(crew: ProcessCrew, shared: Shared) -> None:
    """Wait until every slot has been filled, learned from and released twice more."""
    before = shared.buffer.released.copy()
    advance_until(crew, lambda: (shared.buffer.released >= before + 2).all())


@pytest.mark.parametrize(
    "system",
    [
        {},
        pytest.param(ACTORS, marks=pytest.mark.kills),
        pytest.param(CENTRAL, marks=pytest.mark.kills),
        pytest.param(BUNDLES, marks=pytest.mark.kills),
    ],
    ids=["appo", "impala", "seed", "a3c"],
)
def test_workers_killed_at_random_are_replaced_and_nothing_is_mixed_up(
    make_crew, caplog, monkeypatch, system
):
    """Workers of impala die with the policy worker in their process, a3c's with the learner, too;
    seed's policy worker is in the learner's."""
    monkeypatch.setattr(restarts, "STEADY_S", 0.0)  # each restart at once
    rng = random.Random(1)
    crew, shared = make_crew(max_worker_restarts=100, **system)
    all_slots_move_on(crew, shared)
    gc.collect()  # other tests' garbage, which holds files open until some moment of its own
    num_fds = len(os.listdir("/proc/self/fd"))
    for kill in range(30):
        os.kill(crew.pids[Role("rollout", kill % 2)], rng.choice([signal.SIGKILL, signal.SIGSEGV]))
        if kill % 4 < 2:
            all_slots_move_on(crew, shared)
        end_s = time.monotonic() + rng.uniform(0, 0.5)
        while time.monotonic() < end_s:
            crew.advance()
    all_slots_move_on(crew, shared)
    assert shared.progress.restarts.sum() == 30
    assert len(os.listdir("/proc/self/fd")) == num_fds
    assert crew.stop(10) == []
    assert "while the run was stopping" not in caplog.text
    assert caplog.text.count("starting it again") == 30
    assert_accounts_are_right(shared)


def test_workers_killed_while_their_policy_worker_is_stopped_find_it_again(make_crew, monkeypatch):
    """Each asks for actions, and dies: more requests than their queue has room for."""
    monkeypatch.setattr(restarts, "STEADY_S", 0.0)
    settings = {"num_workers": 1, "slots_per_split": 1, "max_worker_restarts": 100}
    crew, shared = make_crew(**settings)
    all_slots_move_on(crew, shared)
    policy = crew.pids[Role("policy", 0)]
    os.kill(policy, signal.SIGSTOP)
    for _ in range(4):
        before = shared.buffer.generation.copy()
        os.kill(crew.pids[Role("rollout", 0)], signal.SIGKILL)
        # All are reclaimed, and begun: the requests of each slot follow at once.
        advance_until(crew, lambda before=before: (shared.buffer.generation >= before + 2).all())
        end_s = time.monotonic() + 0.3
        advance_until(crew, lambda end_s=end_s: time.monotonic() > end_s)
    os.kill(policy, signal.SIGCONT)
    all_slots_move_on(crew, shared)
    assert shared.progress.restarts.sum() == 4
    assert crew.stop(10) == []
    assert_accounts_are_right(shared)


def test_one_that_fails_again_and_again_is_started_later_each_time(make_crew, caplog):
    crew, shared = make_crew()
    all_slots_move_on(crew, shared)
    for delay_s in (0, 1, 2):
        os.kill(crew.pids[Role("rollout", 0)], signal.SIGKILL)
        killed_s, number = time.monotonic(), shared.progress.restarts.sum()
        advance_until(crew, lambda number=number: shared.progress.restarts.sum() > number)
        assert time.monotonic() - killed_s >= delay_s
        before = shared.progress.env_steps[:-1].copy()
        advance_until(crew, lambda before=before: (shared.progress.env_steps[:-1] > before).all())
    texts = [text for text in caplog.messages if "starting it again" in text]
    assert [text.partition("; ")[2] for text in texts] == [
        "starting it again (restart 1)",
        "starting it again in 1 s (restart 2)",
        "starting it again in 2 s (restart 3)",
    ]
    os.kill(crew.pids[Role("rollout", 0)], signal.SIGKILL)
    advance_until(crew, lambda: Role("rollout", 0) not in crew.pids)
    started_s = time.monotonic()
    assert crew.stop(10) == []
    assert time.monotonic() - started_s < 3, "nobody waits for a restart that is due later"
    assert shared.progress.restarts.sum() == 3


def test_failures_follow_the_clock():
    history = restarts.RestartHistory()
    now_s, delays = 1000.0, []
    for _ in range(9):
        delays.append(history.failed(now_s, "the server is away"))
        now_s += delays[-1]
        history.restarted()
        now_s += 100  # to fail before its first decision may take long
    assert delays == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    history.worked(now_s)
    now_s += restarts.STEADY_S
    assert history.failed(now_s, "another reason") == 0
    assert len(history.causes) == 10
    history.failed(now_s + restarts.WINDOW_S, "an hour later")
    assert history.causes == ["another reason", "an hour later"]


def test_failures_are_the_same_but_for_addresses_and_numbers():
    history, repeats = restarts.RestartHistory(), []
    for reason in (
        "rollout-0 (pid 72): no answer",
        "rollout-0 (pid 73): no answer",
        "rollout-0 (pid 74): another one",
        "rollout-0 (pid 75): <object at 0x7f3a>",
        "rollout-0 (pid 76): <object at 0xbeef>",
    ):
        history.failed(1.0, reason)
        repeats.append(history.num_repeats)
    assert repeats == [1, 2, 1, 1, 2]


def raised_with(numbers):
    raise ValueError(f"no way from {numbers}")


def broken_at(number):
    try:
        {}[number]
    except KeyError:
        raised_with(np.linspace(-1, number, number))


def test_failures_with_a_traceback_are_the_same_if_one_line_raised_the_same_type():
    """Whatever the error shows: an array's text differs in more than its digits."""
    rng, history, repeats = np.random.default_rng(0), restarts.RestartHistory(), []
    calls = [partial(raised_with, rng.normal(size=size) * 10.0**size) for size in (1, 3, 30, 300)]
    calls += [
        partial(broken_at, 4),
        partial(broken_at, 70),
        partial(np.zeros, -1),
        partial(int, "a"),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except ValueError as error:
            error.add_note(f"in step {number} with {rng.normal(size=number)}")
            history.failed(1.0, f"rollout-0 (pid 7) exited with 1:\n{traceback.format_exc()}")
        repeats.append(history.num_repeats)
    history.failed(1.0, "rollout-0 (pid 7) hangs")
    assert repeats == [1, 2, 3, 4, 5, 6, 1, 2]
    assert history.num_repeats == 1
    try:
        raise LookupError(rng.normal(size=3))
    except LookupError:
        first = traceback.format_exc()
    history.failed(1.0, first)
    history.failed(1.0, first.replace("LookupError", "OSError"))
    assert history.num_repeats == 1


def test_too_many_restarts_end_the_run_and_tell_why(make_crew):
    crew, shared = make_crew(max_worker_restarts=1)
    all_slots_move_on(crew, shared)
    for _ in range(2):
        os.kill(crew.pids[Role("rollout", 1)], signal.SIGKILL)
        if shared.progress.restarts.sum() == 0:
            all_slots_move_on(crew, shared)
    with pytest.raises(WorkerError, match=r"2 times within an hour \(max_worker_restarts=1\)") as e:
        advance_until(crew, lambda: False)
    assert str(e.value).count("rollout-1 (pid ") == 2
    assert str(e.value).count("SIGKILL") == 2


# --- one that is slow ---


def test_a_slow_environment_holds_up_its_own_worker_alone(make_crew, monkeypatch, tmp_path):
    """One of 100 times the others' time: the other worker's decisions per second stay."""
    rates = []
    for claim in ("", str(tmp_path / "claim")):
        monkeypatch.setenv("SLOW_CLAIM", claim)
        settings = {"env": "tests.tiny_envs:UnevenLedger-v0", "num_splits": 1, "batch_size": 16}
        crew, shared = make_crew(**settings)
        advance_until(crew, lambda shared=shared: (shared.buffer.released > 0).all())
        before, start_s = shared.progress.env_steps[:-1].copy(), time.monotonic()
        while time.monotonic() - start_s < 3:
            crew.advance()
        by_worker = (shared.progress.env_steps[:-1] - before).reshape(2, -1).sum(axis=1)
        rates.append(by_worker / (time.monotonic() - start_s))
        assert crew.stop(10) == []
    even, uneven = rates
    assert uneven.min() < 0.5 * uneven.max(), "one is slow"
    assert uneven.max() > 0.3 * even.max(), "the other is as fast as before, but for other load"
