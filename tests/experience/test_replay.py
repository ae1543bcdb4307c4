"""Replay: windows are rows that followed one another, drawn evenly and as often as is due."""

import math
import os
import random
import signal
import time
import tracemalloc
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfrl.envs import Leaf
from sfrl.experience.replay import Replay
from sfrl.experience.trajectory_buffer import SlotSpec
from sfrl.ipc.topology import Role
from sfrl.records import memory_file
from sfrl.run import restarts
from sfrl.run.process_crew import ProcessCrew
from sfrl.settings.config import RowField
from sfrl.settings.experience import ReplaySpec
from sfrl.tune.children import in_child
from sfrl.workers.worker import worker_loop
from tests.ledger import CheckingLearner
from tests.tiny_envs import is_final, successor

CPU = torch.device("cpu")
FRAMES = 3


class Row(NamedTuple):
    """What is known of one row of an environment; actions are numbers that no other row has."""

    number: int
    valid: bool
    action: int | None  # None: it was not acted on, at least not yet
    terminated: bool = False
    frames: tuple[int, ...] = ()  # numbers of the stack's, the oldest first; 0: zeros


class Slots:
    """A buffer as `Replay` reads it, in plain memory, and the rows of each column in a list."""

    def __init__(self, num_splits, num_envs, rollout_length, rng):
        self.num_envs, self.length, self.rng = num_envs, rollout_length, rng
        leaves = (
            Leaf("obs.a", "vector", (2,), "float32"),
            Leaf("obs.b", "image", (1, 2, 3), "uint8"),
            Leaf("obs.c", "image", (FRAMES * 2, 2, 2), "uint8", frames=FRAMES),
            Leaf("obs.d", "vector", (2,), "float32", frames=2),
        )
        acted = {"actions": RowField("float32", (1,))}
        step, row = (
            (num_splits, rollout_length, num_envs),
            (num_splits, rollout_length + 1, num_envs),
        )
        self.buffer = SimpleNamespace(
            spec=SlotSpec(rollout_length, num_envs, leaves, acted),
            obs={leaf.name: np.zeros((*row, *leaf.shape), leaf.dtype) for leaf in leaves},
            acted={"actions": np.zeros((*step, 1), np.float32)},
            rewards=np.zeros(step, np.float32),
            terminated=np.zeros(step, np.bool_),
            valid=np.zeros(row, np.bool_),
            policy_version=np.zeros(step[:2], np.int64),
            starts=np.zeros(num_splits, np.bool_),
        )
        self.columns = [[] for _ in range(num_splits * num_envs)]
        self.numbers = iter(range(1, 10**6))

    def fill(self, split, starts):
        """The next slot of the split: it has one, whose number is its own."""
        buffer = self.buffer
        buffer.starts[split] = starts or not self.columns[split * self.num_envs]
        for env in range(self.num_envs):
            rows = self.columns[split * self.num_envs + env]
            if buffer.starts[split]:
                number = next(self.numbers)  # the worker has played on before its first slot
                older = [next(self.numbers) for _ in range(FRAMES - 1)]
                rows += [Row(frame, False, None) for frame in older]
                rows.append(Row(number, True, None, frames=(*older, number)))
            for t in range(self.length):
                ends = rows[-1].valid and self.rng.random() < 0.4
                terminated = ends and self.rng.random() < 0.5
                rows[-1] = rows[-1]._replace(action=next(self.numbers), terminated=terminated)
                self._write(split, t, env, rows[-1])
                rows.append(self._next(rows[-1], valid=not ends))
            self._write(split, self.length, env, rows[-1])

    def _next(self, row, valid):
        """At an episode's start the older frames are zeros, or copies of the newest."""
        number = next(self.numbers)
        older = row.frames[1:]
        if not row.valid:
            older = (self.rng.choice((0, number)),) * (FRAMES - 1)
        return Row(number, valid, None, frames=(*older, number))

    def _write(self, split, t, env, row):
        buffer = self.buffer
        buffer.obs["obs.a"][split, t, env] = row.number, -row.number
        buffer.obs["obs.b"][split, t, env] = np.arange(6).reshape(1, 2, 3) + row.number % 200
        buffer.obs["obs.c"][split, t, env] = picture(row.frames)
        buffer.obs["obs.d"][split, t, env] = row.frames[-2:]
        buffer.valid[split, t, env] = row.valid
        if row.action is not None:
            buffer.acted["actions"][split, t, env] = row.action
            buffer.rewards[split, t, env] = row.action + 0.5
            buffer.terminated[split, t, env] = row.terminated
            buffer.policy_version[split, t] = split  # one for all environments

    def windows(self, column, length, span):
        """Number of its first row -> all rows of each window in the last `length` rows."""
        rows = self.columns[column]
        places = {row.number: i for i, row in enumerate(rows)}
        oldest = max(0, len(rows) - length)
        found = {i: rows[i : i + span + 1] for i in range(oldest, len(rows) - span)}
        return {
            window[0].number: window
            for window in found.values()
            if window[0].valid
            and all(row.action is not None for row in window[:-1])
            and all(places[frame] >= oldest for frame in window[0].frames if frame)
        }


def picture(frames):
    """[FRAMES * 2, 2, 2]: of each two channels that differ, and are 0 for a frame that is none."""
    channels = [(f % 251 + 1, f * 7 % 251 + 1) if f else (0, 0) for f in frames]
    return np.repeat(np.array(channels).reshape(-1, 1, 1), 4, axis=1).reshape(-1, 2, 2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_windows_are_those_of_a_slow_model_whatever_ends_restarts_or_is_overwritten(data):
    number = st.integers(1, 3)
    num_splits, num_envs, span = data.draw(number), data.draw(number), data.draw(number)
    earlier_span = data.draw(number)  # of a run that is resumed
    rollout_length = data.draw(st.integers(1, 5))
    length = (
        rollout_length + max(span, earlier_span) + 2 + 2 * FRAMES + data.draw(st.integers(0, 9))
    )
    slots = Slots(
        num_splits, num_envs, rollout_length, data.draw(st.randoms(use_true_random=False))
    )
    specs = [
        ReplaySpec(num_splits * num_envs * length, 0, 1.0, each)
        for each in (earlier_span, span, span)
    ]
    earlier, *replays = [Replay(spec, 8, slots.buffer, range(num_splits), CPU) for spec in specs]
    has_ended = data.draw(st.integers(0, 30))  # after so many slots it is resumed
    history = data.draw(
        st.lists(st.tuples(st.integers(0, num_splits - 1), st.integers(0, 4)), max_size=30)
    )
    for i, (split, dice) in enumerate(history):
        if i == has_ended:
            replays[1].load_state(earlier.state())
        slots.fill(split, starts=dice == 0)
        for replay in (replays[0], earlier if i < has_ended else replays[1]):
            replay.load([split])
            replay.take()
    if len(history) <= has_ended:
        replays[1].load_state(earlier.state())
    expected = {}
    for column in range(num_splits * num_envs):
        for first, window in slots.windows(column, length, span).items():
            expected[first] = column, window
    num_decisions = sum(
        row.valid and row.action is not None for rows in slots.columns for row in rows[-length:]
    )
    for replay in replays:
        assert replay.num_decisions == num_decisions
        rows, columns = np.nonzero(replay._is_start)
        assert replay._num_starts == len(rows)
        batch = replay.gather(torch.from_numpy(rows), torch.from_numpy(columns))
        firsts = batch.obs["obs.a"][0, :, 0].int().tolist()
        assert sorted(firsts) == sorted(expected)
        for i, first in enumerate(firsts):
            column, window = expected[first]
            assert column == columns[i]
            end = next((t for t in range(1, span) if not window[t].valid), span)
            assert batch.ends[i] == end
            shown = [window[0], window[end]]
            assert batch.shown[:, i].tolist() == [r.valid for r in shown]
            assert batch.obs["obs.a"][:, i].tolist() == [[r.number, -r.number] for r in shown]
            stacks = np.stack([picture(r.frames) for r in shown])
            np.testing.assert_array_equal(batch.obs["obs.c"][:, i], stacks)
            assert batch.obs["obs.d"][:, i].tolist() == [[*r.frames[-2:]] for r in shown]
            seen = torch.tensor([r.number % 200 for r in shown]).reshape(-1, 1, 1, 1)
            assert (batch.obs["obs.b"][:, i] == torch.arange(6).reshape(1, 2, 3) + seen).all()
            assert batch.valid[:, i].tolist() == [r.valid for r in window]
            actions = [r.action for r in window[:-1]]
            assert batch.acted["actions"][:, i, 0].tolist() == actions
            assert batch.rewards[:, i].tolist() == [action + 0.5 for action in actions]
            assert batch.terminated[:, i].tolist() == [r.terminated for r in window[:-1]]
            assert (batch.policy_version[:, i] == column // num_envs).all()


def taken(replay, *slots, rng=None):
    replay.load(slots)
    replay.take()
    return replay.orders([*slots], rng or np.random.default_rng(0))


def test_all_windows_have_the_same_chance_though_one_environment_has_fewer():
    slots = Slots(2, 2, 5, random.Random(0))
    replay = Replay(ReplaySpec(400, 0, 1.0), 64, slots.buffer, range(2), CPU)
    for split in (0, 0, 1, 0):
        slots.fill(split, starts=False)
        taken(replay, split)
    drawn = replay._draw(40_000, np.random.default_rng(0))
    counts = Counter(zip(*drawn.tolist(), strict=True))
    assert set(counts) == set(zip(*(i.tolist() for i in np.nonzero(replay._is_start)), strict=True))
    mean = 40_000 / len(counts)
    assert len(counts) > 20
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


@pytest.mark.parametrize("updates_per_decision", [1.0, 0.3, 2.5])
def test_minibatches_are_due_for_each_decision_once_there_are_enough(updates_per_decision):
    """Rows that only reset are no decisions."""
    slots = Slots(1, 3, 4, random.Random(1))
    spec = ReplaySpec(3 * 50, 40, updates_per_decision)
    replay = Replay(spec, 16, slots.buffer, [0], CPU)
    decisions = made = due = 0
    for _ in range(30):
        slots.fill(0, starts=False)
        orders = taken(replay, 0)
        new = int(slots.buffer.valid[0, :-1].sum())
        decisions += new
        due += new if decisions >= 40 else 0
        made += len(orders)
        assert made == math.floor(due * Fraction(str(updates_per_decision)))
        assert orders.shape == (len(orders), 2, 16)
        assert len(orders) > 0 or decisions < 40 or updates_per_decision < 1
    assert decisions > 150, "more than it holds"


def test_nothing_is_due_while_no_window_is_whole():
    slots = Slots(1, 1, 2, random.Random(0))
    replay = Replay(ReplaySpec(50, 1, 1.0, 3), 4, slots.buffer, [0], CPU)
    slots.fill(0, starts=False)
    assert len(taken(replay, 0)) == 0
    slots.fill(0, starts=False)
    assert len(taken(replay, 0)) > 0


def test_a_long_fraction_of_an_update_is_saved_and_read():
    slots = Slots(1, 1, 3, random.Random(0))
    old, new = (Replay(ReplaySpec(50, 1, 1 / 900), 4, slots.buffer, [0], CPU) for _ in range(2))
    for _ in range(10):  # the longest fractions are those of odd numbers of decisions
        slots.fill(0, starts=False)
        taken(old, 0)
        new.load_state(old.state())
        assert old._due == new._due < 1
    assert old._due > 0


def made_of_large_memory() -> tuple[int, int]:
    """Bytes of its rows, and those that the process has grown by."""
    slots = Slots(2, 3, 4, random.Random(0))
    process = psutil.Process()
    before = process.memory_info().rss
    replay = Replay(ReplaySpec(6_000_000, 0, 1.0), 8, slots.buffer, range(2), CPU)
    size = sum(rows.nbytes for rows in replay._rows.values())
    return size, process.memory_info().rss - before


def test_a_memory_takes_as_much_as_has_been_written():
    # A process in which much has been freed would clear that for it, and grow.
    size, grown = in_child(made_of_large_memory)
    assert size > 200 << 20
    assert grown < 50 << 20


def test_a_saved_memory_is_read_block_by_block_into_the_only_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_file, "_BLOCK_BYTES", 1 << 15)
    memory_file.path_in(tmp_path).parent.mkdir()
    slots = Slots(1, 40, 50, random.Random(0))
    old, new = (Replay(ReplaySpec(40 * 1500, 0, 1.0), 8, slots.buffer, [0], CPU) for _ in range(2))
    for _ in range(20):
        slots.fill(0, starts=False)
        taken(old, 0)
    memory_file.save(tmp_path, old.state(), 7, 9)
    size = memory_file.path_in(tmp_path).stat().st_size
    told = []
    tracemalloc.start()
    try:
        with memory_file.opened(tmp_path, 7, lambda: told.append(1)) as saved:
            assert saved.env_steps == 9
            arrays = saved.arrays
            assert len(arrays["row obs.c"].entries) > 5
            new.load_state(arrays)
            assert len(told) == sum(len(blocks.entries) for blocks in arrays.values())
            _, peak = tracemalloc.get_traced_memory()
            arrays["row obs.c"].entries.pop()
            with pytest.raises(ValueError, match=r"row obs.c has \d+ rows, and must have 1003"):
                new.load_state(arrays)
    finally:
        tracemalloc.stop()
    assert peak < 0.75 * size  # of which the windows take most
    assert new.num_decisions == old.num_decisions > 2000
    for name, rows in old._rows.items():
        assert torch.equal(rows, new._rows[name])


# --- through real processes, killed at any moment ---


class ReplayingLearner(CheckingLearner):
    """Checks every window that there is, as slots come in."""

    def __init__(self, shared):
        super().__init__(shared)
        config = shared.config
        spec = ReplaySpec(40 * config.num_workers * config.envs_per_worker, 0, 1.0, 3)
        self.replay = Replay(spec, 8, shared.buffer, shared.topology.slots.split, CPU)

    def step(self):
        slots = self.slots.take(1)
        if slots:
            taken(self.replay, *slots)
            self.slots.give_back(slots)
            rows, columns = np.nonzero(self.replay._is_start)
            batch = self.replay.gather(torch.from_numpy(rows), torch.from_numpy(columns))
            obs, actions = batch.obs["obs"].numpy(), batch.acted["actions"].numpy()
            row, ends = obs[0], batch.ends.numpy()
            assert not is_final(row).any()
            for t in range(self.replay.spec.window):
                [next_row], [rewards], [terminated], _ = successor(row[None], actions[t : t + 1])
                is_before = t < ends
                np.testing.assert_array_equal(batch.rewards[t][is_before], rewards[is_before])
                np.testing.assert_array_equal(batch.terminated[t][is_before], terminated[is_before])
                row = np.where(is_before[:, np.newaxis], next_row, row)
            np.testing.assert_array_equal(obs[1], row)
            np.testing.assert_array_equal(batch.shown.numpy(), ~is_final(obs))
            self.progress.learner_steps += 1
        return bool(slots)


def replaying_body(shared, *_):
    worker_loop(ReplayingLearner(shared), shared.stop)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.kills)])
def test_no_window_reaches_from_a_killed_worker_to_its_successor(make_shared, monkeypatch, kills):
    monkeypatch.setattr(restarts, "STEADY_S", 0.0)
    shared = make_shared(
        env="tests.tiny_envs:Ledger-v0",
        frameskip=1,
        num_workers=1,
        num_splits=2,
        envs_per_worker=4,
        rollout_length=4,
        batch_size=8,
        minibatches=1,
        model="mlp",
        precision="float32",
        max_worker_restarts=100,
    )
    crew = ProcessCrew(shared, {"learner": replaying_body})
    crew.start(None)
    try:
        for _ in range(kills):
            before = shared.buffer.released.copy()
            deadline_s = time.monotonic() + 60
            while not (shared.buffer.released >= before + 6).all():
                crew.advance()
                assert time.monotonic() < deadline_s
            os.kill(crew.pids[Role("rollout", 0)], signal.SIGKILL)
        assert crew.stop(10) == []
        assert shared.progress.restarts.sum() >= kills - 1
    finally:
        crew.kill()
        crew.stop(1.0)
