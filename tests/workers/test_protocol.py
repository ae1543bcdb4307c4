"""The life of a slot: step by step on a tape, and by the thousand through real processes."""

import multiprocessing
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from sfrl import envs
from sfrl.envs import OBS
from sfrl.experience.trajectory_buffer import Owner, SlotSpec, TrajectoryBuffer
from sfrl.ipc.channels import Channels
from sfrl.ipc.index_queue import unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.progress import Progress
from sfrl.ipc.topology import LEARNER, make_topology
from sfrl.run import process_crew
from sfrl.run.child import run_child
from sfrl.run.roles import Shared
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.config import RowField
from sfrl.workers.rollout_worker import RolloutWorker
from tests.leaves import discrete, vector
from tests.ledger import CheckingLearner

# --- on a tape ---


class TapedField:
    """A field of the buffer that notes what is written to it."""

    def __init__(self, name: str, array: np.ndarray, tape: list[str]) -> None:
        self.name, self.array, self.tape = name, array, tape

    def __getitem__(self, place):
        return self.array[place]

    def __setitem__(self, place, value):
        self.array[place] = value
        slot, t = place
        self.tape.append(f"write {self.name}[{slot}, {t}] = {self.array[place].item():g}")


class TapedBuffer(TrajectoryBuffer):
    def __init__(self, num_slots: int, spec: SlotSpec, tape: list[str]) -> None:
        super().__init__(num_slots, spec, debug=True)
        self.tape = tape
        self.obs = {name: TapedField(name, field, tape) for name, field in self.obs.items()}
        for name in ("valid", "rewards", "terminated", "truncated"):
            setattr(self, name, TapedField(name, getattr(self, name), tape))

    def transfer(self, slot: int, giver: Owner, taker: Owner) -> None:
        super().transfer(slot, giver, taker)
        self.tape.append(f"slot {slot}: {giver.name} -> {taker.name}")


class TapedQueue:
    def __init__(self, name: str, tape: list[str]) -> None:
        self.name, self.tape = name, tape
        self.messages: list[int] = []

    def put(self, message: int, producer: int = 0) -> None:
        self.tape.append(f"{self.name} <- {unpack(message)[:2]}")

    def get_many(self, max_messages: int) -> list[int]:
        taken, self.messages = self.messages[:max_messages], self.messages[max_messages:]
        return taken


class TapedEnv:
    """One environment that counts its steps; every third step ends an episode."""

    num_envs = 1
    leaves = (vector(1),)
    actions = discrete(10)
    frameskip = 1

    def __init__(self, name: str, tape: list[str]) -> None:
        self.name, self.tape = name, tape
        self.num_steps = 0

    def reset(self):
        self.tape.append(f"{self.name} resets")
        return {OBS: np.zeros((1, 1), np.float32)}

    def send(self, actions):
        self.tape.append(f"{self.name} is sent {actions.item()}")

    def recv(self):
        self.num_steps += 1
        self.tape.append(f"{self.name} has stepped")
        obs = np.full((1, 1), self.num_steps, np.float32)
        ended = np.array([self.num_steps % 4 == 3])
        was_reset = self.num_steps % 4 == 0
        reward = np.array([0 if was_reset else 0.5], np.float32)
        return envs.StepResult({OBS: obs}, reward, ended, np.zeros(1, np.bool_))

    def episode_info(self, env):
        return {}


class Taped(NamedTuple):
    worker: RolloutWorker
    buffer: TapedBuffer
    inbox: TapedQueue
    tape: list[str]

    def advance(self, *messages: tuple[int, int]) -> list[str]:
        """Send the worker these messages, let it do one step; what went on the tape."""
        for slot, t in messages:
            if t < self.buffer.spec.rollout_length:
                self.buffer.actions[slot, t] = 7
                self.buffer.transfer(slot, Owner.POLICY_WORKER, Owner.ROLLOUT_WORKER)
            else:
                self.buffer.transfer(slot, Owner.LEARNER, Owner.FREE)
            self.inbox.messages.append(self.buffer.message(slot, t))
        self.tape.clear()
        self.worker.step()
        return list(self.tape)


@pytest.fixture
def make_taped(monkeypatch, make_shared):
    """A rollout worker with T=2 and one environment a split; the tape from before it was made."""

    def make(num_splits: int, slots_per_split: int) -> Taped:
        config = ActorCriticConfig(
            num_workers=1,
            num_splits=num_splits,
            envs_per_worker=num_splits,
            slots_per_split=slots_per_split,
            rollout_length=2,
            batch_size=2,
            minibatches=1,
        )
        tape: list[str] = []
        splits = iter("AB")
        monkeypatch.setattr(
            envs, "make_vec_env", lambda *args, **kwargs: TapedEnv(f"env {next(splits)}", tape)
        )
        buffer = TapedBuffer(
            config.num_slots, SlotSpec(2, 1, (vector(1),), {"actions": RowField("int64")}), tape
        )
        inbox = TapedQueue("replies", tape)
        topology = make_topology(config)
        requests, trajectories = (
            TapedQueue("action requests", tape),
            TapedQueue("trajectories", tape),
        )
        channels = Channels(topology, [requests], [inbox], [trajectories])
        worker = RolloutWorker(0, config, buffer, channels, Progress(topology, 1), Mailbox())
        return Taped(worker, buffer, inbox, tape)

    return make


def test_the_life_of_a_slot(make_taped):
    taped = make_taped(num_splits=1, slots_per_split=2)
    assert taped.tape == [
        "env A resets",
        "slot 0: FREE -> ROLLOUT_WORKER",
        "write obs[0, 0] = 0",
        "write valid[0, 0] = 1",
        "slot 0: ROLLOUT_WORKER -> POLICY_WORKER",
        "action requests <- (0, 0)",
    ]
    assert taped.advance() == []
    assert taped.advance((0, 0)) == [
        "env A is sent 7",
        "env A has stepped",
        "write rewards[0, 0] = 0.5",
        "write terminated[0, 0] = 0",
        "write truncated[0, 0] = 0",
        "write obs[0, 1] = 1",
        "write valid[0, 1] = 1",
        "slot 0: ROLLOUT_WORKER -> POLICY_WORKER",
        "action requests <- (0, 1)",
    ]
    assert taped.advance((0, 1)) == [
        "env A is sent 7",
        "env A has stepped",
        "write rewards[0, 1] = 0.5",
        "write terminated[0, 1] = 0",
        "write truncated[0, 1] = 0",
        "write obs[0, 2] = 2",
        "write valid[0, 2] = 1",
        "slot 0: ROLLOUT_WORKER -> LEARNER",
        "trajectories <- (0, 2)",
        "slot 1: FREE -> ROLLOUT_WORKER",
        "write obs[1, 0] = 2",
        "write valid[1, 0] = 1",
        "slot 1: ROLLOUT_WORKER -> POLICY_WORKER",
        "action requests <- (1, 0)",
    ]
    # The third step ends the episode: the row after it is not valid, and only resets.
    assert taped.advance((1, 0))[2:7] == [
        "write rewards[1, 0] = 0.5",
        "write terminated[1, 0] = 1",
        "write truncated[1, 0] = 0",
        "write obs[1, 1] = 3",
        "write valid[1, 1] = 0",
    ]
    # The learner has not given slot 0 back: there is nowhere to write.
    assert taped.advance((1, 1))[2:] == [
        "write rewards[1, 1] = 0",
        "write terminated[1, 1] = 0",
        "write truncated[1, 1] = 0",
        "write obs[1, 2] = 4",
        "write valid[1, 2] = 1",
        "slot 1: ROLLOUT_WORKER -> LEARNER",
        "trajectories <- (1, 2)",
    ]
    assert taped.advance() == []
    assert taped.advance((0, 2)) == [
        "slot 0: FREE -> ROLLOUT_WORKER",
        "write obs[0, 0] = 4",
        "write valid[0, 0] = 1",
        "slot 0: ROLLOUT_WORKER -> POLICY_WORKER",
        "action requests <- (0, 0)",
    ]
    # A slot that comes back while another is being written waits for its turn.
    assert taped.advance((1, 2)) == []


def test_a_split_is_sent_its_actions_before_the_worker_waits_for_another(make_taped):
    taped = make_taped(num_splits=2, slots_per_split=1)
    steps = [line for line in taped.advance((0, 0), (1, 0)) if line.startswith("env")]
    assert steps == ["env A is sent 7", "env B is sent 7", "env A has stepped"]
    steps = [line for line in taped.advance((0, 1)) if line.startswith("env")]
    assert steps == ["env A is sent 7", "env B has stepped"], "the oldest first"


# --- through real processes ---

T, N = 5, 4  # rollout length, environments per split
LEDGER = {
    "env": "tests.tiny_envs:Ledger-v0",
    "frameskip": 1,
    "num_workers": 2,
    "num_splits": 2,
    "envs_per_worker": 2 * N,
    "slots_per_split": 2,
    "rollout_length": T,
    "batch_size": T * N,
    "minibatches": 2,
    "model": "mlp",
    "precision": "float32",
    "debug_buffers": True,
}


def _start_workers(shared: Shared, reports: Mailbox) -> list:
    bodies = {
        role: partial(process_crew.members_body, shared, role, reports, Mailbox(), None)
        for role in shared.topology.roles
        if role != LEARNER
    }
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_child, args=(role.name, reports, body))
        for role, body in bodies.items()
    ]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_policy_workers": 2, "queue": "faster-fifo"}],
    ids=["lock-free", "faster-fifo, 2 policy workers"],
)
def test_every_row_arrives_at_the_learner_unmixed(make_shared, settings):
    shared = make_shared(**LEDGER, **settings)
    reports = Mailbox()
    learner = CheckingLearner(shared)
    processes = _start_workers(shared, reports)
    deadline_s = time.monotonic() + 60
    try:
        while learner.num_rows < 20_000:
            assert all(process.is_alive() for process in processes), reports.get_all()
            assert time.monotonic() < deadline_s, f"only {learner.num_rows} rows"
            if not learner.step():
                learner.wait(0.1)
    finally:
        shared.stop.set()
        shared.channels.wake_all()
        for process in processes:
            process.join(10)
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert set(learner.actions_seen) == set(range(7))
    assert len(np.unique(np.concatenate(list(learner.identities.values())), axis=0)) == 4 * N
