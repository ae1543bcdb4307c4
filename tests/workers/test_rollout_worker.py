"""Rollout worker: what it writes into slots, in this process and in one of its own."""

import dataclasses
import itertools
import logging
import multiprocessing
import sys
from collections import defaultdict
from multiprocessing.sharedctypes import Synchronized
from typing import NamedTuple

import numpy as np
import pytest

from sfrl import envs
from sfrl.envs import OBS
from sfrl.experience.trajectory_buffer import Owner
from sfrl.ipc.index_queue import Message, pack, unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import EpisodeEnded
from sfrl.ipc.topology import LEARNER, Role
from sfrl.records.timing import ROLLOUT_STAGES
from sfrl.run.child import run_child
from sfrl.run.roles import Shared, make_rollout_worker
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.workers import rollout_worker
from sfrl.workers.rollout_worker import RolloutWorker, Split
from sfrl.workers.worker import worker_loop
from tests.tiny_envs import is_final, successor

T, N = 5, 3  # rollout length, environments per split
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
    "debug_buffers": True,
}


class Trajectories(NamedTuple):
    """Copies of a slot's fields, or of several slots' one after the other."""

    obs: np.ndarray  # [T+1, N, 5]
    valid: np.ndarray  # [T+1, N]
    actions: np.ndarray  # [T, N]
    rewards: np.ndarray  # [T, N]
    terminated: np.ndarray  # [T, N]
    truncated: np.ndarray  # [T, N]


def episodes_of(env, num_steps=5):
    config = ActorCriticConfig(**{**LEDGER, "env": f"tests.vectors:{env}", "frameskip": 2})
    split = Split(0, config)
    for _ in range(num_steps):
        split.env.send(np.zeros(N, np.int64))
        _, episodes = split.recv()
    return episodes


def test_what_a_class_tells_of_an_episode_becomes_plain_numbers():
    episodes = episodes_of("Tells")
    assert [episode.info for episode in episodes] == [{"plain": 2, "numpy": 0.5, "whole": 3}] * N
    assert {type(value) for value in episodes[0].info.values()} == {float}


def test_a_score_that_is_no_number_ends_the_run():
    with pytest.raises(envs.NonFiniteError, match="GivesNaN: the rewards of an episode add up to"):
        episodes_of("GivesNaN")


class Peers:
    """The rest of the run: the policy worker, with random actions, and the learner."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.rng = np.random.default_rng(0)

    def requests(self) -> list[Message]:
        return [unpack(m) for m in self.shared.channels.action_requests[0].get_many(100)]

    def answer(self, requests: list[Message]) -> bool:
        for slot, t, generation in requests:
            self.shared.buffer.actions[slot, t] = self.rng.integers(7, size=N)
            self.shared.buffer.transfer(slot, Owner.POLICY_WORKER, Owner.ROLLOUT_WORKER)
            queue, producer = self.shared.channels.replies_by_slot(Role("policy", 0))[slot]
            queue.put(pack(slot, t, generation), producer)
        return bool(requests)

    def full_slots(self) -> list[int]:
        return [unpack(m)[0] for m in self.shared.channels.trajectories[0].get_many(100)]

    def copy(self, slot: int) -> Trajectories:
        return Trajectories(
            self.shared.buffer.obs[OBS][slot].copy(),
            *(getattr(self.shared.buffer, name)[slot].copy() for name in Trajectories._fields[1:]),
        )

    def release(self, slot: int) -> None:
        self.shared.buffer.transfer(slot, Owner.LEARNER, Owner.FREE)
        self.shared.buffer.released[slot] = self.shared.buffer.generation[slot]
        queue, producer = self.shared.channels.replies_by_slot(LEARNER)[slot]
        queue.put(self.shared.buffer.message(slot, T), producer)


def play(shared: Shared, worker: RolloutWorker, num_slots: int) -> dict[int, list[Trajectories]]:
    """Trajectories by split, at least `num_slots` in all; ends with all slots full, none free."""
    peers = Peers(shared)
    collected = defaultdict(list)
    num_released = 0
    while worker.step() or peers.answer(peers.requests()):
        for slot in peers.full_slots():
            collected[shared.topology.slots.split[slot]].append(peers.copy(slot))
            if num_released < num_slots:
                peers.release(slot)
                num_released += 1
    return collected


def joined(slots: list[Trajectories]) -> Trajectories:
    """One trajectory of all slots; what one slot's row T and the next one's row 0 share, once."""
    fields = []
    for name, parts in zip(Trajectories._fields, zip(*slots, strict=True), strict=True):
        if name in ("obs", "valid"):
            parts = [*(part[:-1] for part in parts), parts[-1][-1:]]
        fields.append(np.concatenate(parts))
    return Trajectories(*fields)


@pytest.fixture
def shared(make_shared):
    return make_shared(**LEDGER)


@pytest.fixture
def reports():
    return Mailbox()


@pytest.fixture
def worker(shared, reports):
    return make_rollout_worker(shared, 0, reports)


def test_every_row_follows_from_the_one_before(shared, worker):
    for slots in play(shared, worker, 40).values():
        assert len(slots) > 10
        for slot in slots:
            expected = successor(slot.obs[:-1], slot.actions)
            actual = (slot.obs[1:], slot.rewards, slot.terminated, slot.truncated)
            for got, wanted in zip(actual, expected, strict=True):
                np.testing.assert_array_equal(got, wanted)


def test_row_0_of_a_slot_is_row_t_of_the_one_before(shared, worker):
    for slots in play(shared, worker, 40).values():
        for before, after in itertools.pairwise(slots):
            np.testing.assert_array_equal(before.obs[-1], after.obs[0])
            np.testing.assert_array_equal(before.valid[-1], after.valid[0])


def test_rows_are_invalid_exactly_where_they_show_a_final_observation(shared, worker):
    slots = [slot for slots in play(shared, worker, 40).values() for slot in slots]
    for slot in slots:
        np.testing.assert_array_equal(slot.valid, ~is_final(slot.obs))
    invalid_rows = {t for slot in slots for t in np.flatnonzero(~slot.valid.all(axis=1))}
    assert invalid_rows == set(range(T + 1)), "episodes ended everywhere, slot borders included"


def test_episodes_are_reported_with_their_raw_score_and_length(shared, worker, reports):
    by_split = play(shared, worker, 40)
    reported = reports.get_all()
    num_ends = 0
    for split, slots in by_split.items():
        rows = joined(slots)
        for i in range(N):
            ends = np.flatnonzero(rows.terminated[:, i] | rows.truncated[:, i])
            num_ends += len(ends)
            for before, end in itertools.pairwise(ends):
                steps = slice(before + 2, end + 1)  # before + 1 shows the final observation
                score, number = float(rows.rewards[steps, i].sum()), split * N + i
                episode = EpisodeEnded(score, end - before - 1, number)
                assert reported.count(episode) == 1
    assert num_ends > 50
    assert len(reported) == num_ends


@pytest.mark.parametrize("game", ["Atlantis", "Qbert"])
def test_a_score_is_of_a_whole_game_where_a_lost_life_ends_the_episode(game):
    """Atlantis gives points in rows that only play on, for shots that were under way."""
    sizes = {"num_workers": 1, "envs_per_worker": 2, "num_splits": 1, "batch_size": 64}
    config = ActorCriticConfig(env=game, seed=5, observe_last=True, **sizes, minibatches=1)
    whole, lives = (
        Split(0, dataclasses.replace(config, episodic_life=value)) for value in (False, True)
    )
    no_op = 0
    rng = np.random.default_rng(0)
    num_ends = num_games = num_late = 0
    for _ in range(1500):
        actions = envs.random_actions(lives.env.actions, lives.obs, rng)
        only_play_on = lives.ended & ~whole.ended
        lives.env.send(actions)
        whole.env.send(np.where(only_play_on, no_op, actions))
        before = lives.ended
        (result, ended), (plain, expected) = lives.recv(), whole.recv()
        assert [e[:1] + e[2:] for e in ended] == [e[:1] + e[2:] for e in expected]  # but lengths
        assert not result.rewards[before].any()
        assert not result.obs["last_reward"][before].any()
        num_late += np.count_nonzero(plain.rewards[only_play_on])
        num_ends += result.ended.sum()
        num_games += len(expected)
    assert num_ends > num_games
    assert num_late if game == "Atlantis" else num_games > 3


def test_env_steps_count_decisions_but_not_resets(shared, worker):
    rows = [joined(slots) for slots in play(shared, worker, 20).values()]
    assert shared.progress.total_env_steps == sum(int(r.valid[:-1].sum()) for r in rows)
    assert shared.progress.total_env_steps < sum(r.actions.size for r in rows)
    own = shared.progress.env_steps[:-1]
    assert own.sum() == shared.progress.total_env_steps
    assert (own > 0).all(), "every slot counts those written into it"


def test_split_1_starts_a_rollout_length_of_decisions_after_split_0(shared, worker):
    by_split = play(shared, worker, 0)
    first, second = by_split[0][0].obs[0], by_split[1][0].obs[0]
    assert (first[:, 2:] == [0, 0, -1]).all()
    rows = second * [1, 1, 0, 0, 1]  # the same environments at step 0 of episode 0
    for _ in range(T):
        rows, *_ = successor(rows, np.zeros(N, np.int64))
    np.testing.assert_array_equal(second[:, :4], rows[:, :4])


@pytest.mark.parametrize("is_serial", [False, True])
def test_slow_environments_are_parted_in_serial_runs_alone(
    make_shared, monkeypatch, caplog, is_serial
):
    monkeypatch.setattr(rollout_worker, "_STAGGER_S", -1.0)
    shared = make_shared(**LEDGER, serial=is_serial)
    with caplog.at_level(logging.INFO):
        make_rollout_worker(shared, 0, Mailbox())
    text = "rollout-0 begins its split 1 after 1 random steps, and not after 5: they are slow"
    assert (text in caplog.messages) != is_serial
    assert shared.buffer.obs[OBS][2, 0, :, 2:4].any(), "split 1 has stepped"


def test_one_split_steps_while_another_waits_for_its_actions(shared, worker):
    peers = Peers(shared)
    waiting, answered = peers.requests()
    for t in range(T):
        assert answered.t == t
        assert peers.answer([answered])
        assert worker.step()
        assert not worker.step()
        (answered,) = peers.requests()
    peers.answer([waiting])
    assert worker.step()
    assert [request[:2] for request in peers.requests()] == [(waiting.slot, 1)]


def test_every_split_asks_its_own_policy_worker(make_shared):
    shared = make_shared(**LEDGER, num_policy_workers=2)
    make_rollout_worker(shared, 0, Mailbox())  # begins a slot of both splits
    asked = [
        [shared.topology.slots.split[unpack(message).slot] for message in queue.get_many(100)]
        for queue in shared.channels.action_requests
    ]
    assert asked == [[0], [1]]


def test_waiting_for_the_learner_is_told_from_waiting_for_actions(shared, worker):
    waited = shared.progress.stage_seconds(Role("rollout", 0))
    for_actions, for_slot = map(ROLLOUT_STAGES.index, ("wait_actions", "wait_slot"))
    worker.wait(0.01)
    assert waited[for_actions] > 0
    assert waited[for_slot] == 0
    play(shared, worker, 0)  # ends with no free slot
    before = waited.copy()
    worker.wait(0.01)
    assert waited[for_slot] > before[for_slot]
    assert waited[for_actions] == before[for_actions]


def _work_and_look_for_torch(
    shared: Shared, reports: Mailbox, has_torch: "Synchronized[int]"
) -> None:
    def body() -> None:
        worker_loop(make_rollout_worker(shared, 0, reports), shared.stop)
        has_torch.value = "torch" in sys.modules

    run_child(Role("rollout", 0).name, reports, body)


def test_a_process_of_its_own_does_the_same_without_torch(shared, reports):
    context = multiprocessing.get_context("spawn")
    has_torch = context.Value("i", -1)
    process = context.Process(target=_work_and_look_for_torch, args=(shared, reports, has_torch))
    process.start()
    peers = Peers(shared)
    num_slots = 0
    while num_slots < 20 and process.is_alive():
        if not peers.answer(peers.requests()):
            shared.channels.action_requests[0].wait(0.1)
        for slot in peers.full_slots():
            rows = peers.copy(slot)
            next_rows, rewards, *_ = successor(rows.obs[:-1], rows.actions)
            np.testing.assert_array_equal(rows.obs[1:], next_rows)
            np.testing.assert_array_equal(rows.rewards, rewards)
            peers.release(slot)
            num_slots += 1
    shared.stop.set()
    shared.channels.wake_all()
    process.join(10)
    assert num_slots == 20, reports.get_all()
    assert process.exitcode == 0
    assert has_torch.value == 0
