"""Roles and the slot map: every address once, and nobody's twice."""

import numpy as np
import pytest

from sfrl.ipc.topology import LEARNER, Role, make_topology
from sfrl.records.timing import COMPONENT_STAGES
from sfrl.settings.actor_critic import ActorCriticConfig

# Uneven on purpose: 6 splits of 2 environments, 3 slots each, served by 4 policy workers.
UNEVEN = {
    "num_workers": 2,
    "num_splits": 3,
    "envs_per_worker": 6,
    "slots_per_split": 3,
    "num_policy_workers": 4,
    "rollout_length": 4,
    "batch_size": 8,
    "minibatches": 1,
}


@pytest.fixture
def topology():
    return make_topology(ActorCriticConfig(**UNEVEN))


def test_roles_have_the_names_that_logs_and_process_titles_show(topology):
    assert [role.name for role in topology.roles] == [
        *("rollout-0", "rollout-1"),
        *("policy-0", "policy-1", "policy-2", "policy-3"),
        "learner",
    ]
    restartable = [role.name for role in topology.roles if role.is_restartable]
    assert restartable == ["rollout-0", "rollout-1"]


def test_every_role_has_a_process_or_actors_share_one_with_their_policy_worker(topology):
    assert [*topology.processes] == topology.roles
    assert all(members == (role,) for role, members in topology.processes.items())
    actors = {
        "num_splits": 1,
        "batch_size": 24,
        "num_policy_workers": 1,
        "loss": "vtrace",
        "system": "impala",
    }
    topology = make_topology(ActorCriticConfig(**UNEVEN | actors))
    rollouts, policies = topology.of_kind("rollout"), topology.of_kind("policy")
    pairs = {rollouts[i]: (rollouts[i], policies[i]) for i in range(2)}
    assert topology.processes == {**pairs, LEARNER: (LEARNER,)}
    assert topology.slots.policy == topology.slots.rollout


def test_seeds_network_and_a_serial_run_share_a_process_and_its_doorbell(make_shared):
    sizes = {**UNEVEN, "env": "CartPole-v1", "frameskip": 1, "num_policy_workers": 1}
    channels = make_shared(**sizes, system="seed", loss="vtrace").channels
    processes, policy = channels.topology.processes, Role("policy", 0)
    workers = [Role("rollout", index) for index in range(2)]
    assert processes == {**{w: (w,) for w in workers}, LEARNER: (LEARNER, policy)}
    assert channels.topology.process_of(policy) == LEARNER
    learners = channels.inbox(LEARNER)
    for role, bell in {LEARNER: None, policy: learners, **dict.fromkeys(workers)}.items():
        assert channels.inbox(role)._bell is bell

    topology = make_shared(**sizes, serial=True).topology
    assert topology.processes == {LEARNER: (LEARNER, policy, *workers)}


def test_every_role_has_a_row_of_its_own(topology):
    assert [topology.row(role) for role in topology.roles] == list(range(7))
    assert topology.row(LEARNER) == 6
    assert topology.num_roles == 7


def test_every_sender_is_another_producer_of_the_queue(topology):
    workers, policies = topology.of_kind("rollout"), topology.of_kind("policy")
    links = [(worker, [*policies, LEARNER]) for worker in workers]
    links += [(network, workers) for network in (*policies, LEARNER)]
    for receiver, senders in links:
        assert topology.num_producers(receiver.kind) == len(senders)
        numbers = [topology.producer(sender, receiver) for sender in senders]
        assert numbers == list(range(len(senders)))


@pytest.mark.parametrize("role", [Role("rollout", 2), Role("learner", 1), Role("policy", -1)])
def test_a_role_that_is_none_of_the_run_has_no_address(topology, role):
    with pytest.raises(AssertionError, match=f"there is no {role.name}"):
        topology.row(role)


def test_what_does_not_send_has_no_producer(topology):
    with pytest.raises(AssertionError, match="policy-0 is none of"):
        topology.producer(Role("policy", 0), LEARNER)


def test_the_slot_map_written_out(topology):
    slots = topology.slots
    assert slots.split == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
    assert slots.rollout == (0, 0, 0, 1, 1, 1)
    assert slots.policy == (0, 1, 2, 3, 0, 1)
    assert list(slots.of_split(4)) == [12, 13, 14]
    assert slots.splits_of(1) == [3, 4, 5]
    assert slots.of_worker(1) == list(range(9, 18))
    assert list(slots.columns(13)) == [8, 9]


@pytest.mark.parametrize("seed", range(20))
def test_every_slot_and_environment_has_one_place_whatever_the_sizes(seed):
    rng = np.random.default_rng(seed)
    workers, splits, per_split, num_envs = rng.integers(1, 6, size=4).tolist()
    config = ActorCriticConfig(
        num_workers=workers,
        num_splits=splits,
        envs_per_worker=splits * num_envs,
        slots_per_split=per_split,
        num_policy_workers=int(rng.integers(1, workers * splits + 1)),
        rollout_length=1,
        batch_size=num_envs,
        minibatches=1,
    )
    slots = make_topology(config).slots
    by_worker = [slot for worker in range(workers) for slot in slots.of_worker(worker)]
    assert by_worker == list(range(config.num_slots))
    for split in range(config.splits):
        assert {slots.split[slot] for slot in slots.of_split(split)} == {split}
        assert split in slots.splits_of(slots.rollout[split])
    assert set(slots.policy) == set(range(config.num_policy_workers)), "each serves a split"
    columns = [column for s in slots.of_split(0)[:1] for column in slots.columns(s)]
    for split in range(1, config.splits):
        first, *others = (list(slots.columns(slot)) for slot in slots.of_split(split))
        assert all(other == first for other in others), "slots of a split have its environments"
        columns += first
    assert columns == list(range(workers * config.envs_per_worker))


def test_progress_has_a_row_for_each_role_and_totals_for_each_kind(make_shared):
    progress = make_shared(**UNEVEN, env="CartPole-v1", frameskip=1).progress
    for number, role in enumerate(progress.topology.roles):
        progress.stage_seconds(role)[:] = number
    totals = progress.stage_totals()
    assert {kind: rows[:, 0].tolist() for kind, rows in totals.items()} == {
        "rollout": [0, 1],
        "policy": [2, 3, 4, 5],
        "learner": [6],
    }
    assert {kind: rows.shape[1] for kind, rows in totals.items()} == {
        kind: len(stages) for kind, stages in COMPONENT_STAGES.items()
    }


def test_a_reply_goes_to_the_worker_that_fills_the_slot(make_shared):
    channels = make_shared(**UNEVEN, env="CartPole-v1", frameskip=1).channels
    for sender in (LEARNER, Role("policy", 3)):
        for slot, (queue, producer) in enumerate(channels.replies_by_slot(sender)):
            queue.put(slot, producer)
    received = [sorted(queue.get_many(100)) for queue in channels.replies]
    assert received == [sorted([*range(9)] * 2), sorted([*range(9, 18)] * 2)]
