"""Processes of several workers: IMPALA's actors, and SEED's network that acts and learns."""

import os
import time
from itertools import pairwise

import pytest
import torch

from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.topology import LEARNER, Role
from sfrl.run.roles import (
    make_members,
    make_policy_worker,
    make_rollout_worker,
    pin_and_nice,
)
from sfrl.workers.members import Members
from tests.ledger import CheckingLearner
from tests.runs import run_training

T, N = 6, 2
SIZES = {
    "env": "tests.tiny_envs:Ledger-v0",
    "frameskip": 1,
    "num_workers": 1,
    "num_splits": 1,
    "envs_per_worker": N,
    "slots_per_split": 3,
    "rollout_length": T,
    "batch_size": T * N,
    "minibatches": 1,
    "model": "mlp",
    "precision": "float32",
    "debug_buffers": True,
}
IMPALA = {"system": "impala", "loss": "vtrace"}
SEED = {"system": "seed", "loss": "vtrace"}
A3C = {
    "system": "a3c",
    "loss": "vtrace",
    "optimizer": "rmsprop",
    "epochs": 1,
    "slots_per_split": 1,
}


def make_process(shared, first):
    members = shared.topology.processes[first]
    return Members(make_members(shared, members, Mailbox(), Mailbox(), None))


def make_actor(shared):
    return make_process(shared, Role("rollout", 0))


class Publishing(CheckingLearner):
    """Has new weights after every row that is acted on."""

    version = 0

    def step(self):
        self.version += 1
        self.progress.learner_steps = self.version
        self.weights.publish(self.model, self.version)
        return super().step()

    def _check(self, slot, rows):
        super()._check(slot, rows)
        self.versions.append(rows.policy_version[:, 0].tolist())


@pytest.mark.parametrize("system", [{}, IMPALA], ids=["appo", "impala"])
def test_an_unroll_is_one_policys_and_only_where_the_system_says_so(make_shared, system):
    shared = make_shared(**SIZES, **system)
    learner = Publishing(shared)
    learner.versions = []
    if system:
        workers = [make_actor(shared)]
    else:
        workers = [make_policy_worker(shared, 0), make_rollout_worker(shared, 0, Mailbox())]
    while len(learner.versions) < 10:
        for worker in (*workers, learner):
            worker.step()
    firsts = [versions[0] for versions in learner.versions]
    assert firsts == sorted(set(firsts)), "each begins with newer ones than the one before"
    are_frozen = [len(set(versions)) == 1 for versions in learner.versions]
    assert all(are_frozen) if system else not any(are_frozen)
    for worker in workers:
        worker.close()


@pytest.mark.slow
def test_a_long_step_silences_an_actors_policy_and_ends_nothing(tmp_path):
    """Its process is judged as one that steps environments: by --env-timeout."""
    ended = run_training(
        tmp_path / "run",
        *(
            "--env=Latency",
            '--env-kwargs={"mean_ms":1200}',
            "--system=impala",
            "--stall-timeout=0.5",
        ),
        *("--envs-per-worker=1", "--rollout-length=2", "--batch-size=2", "--minibatches=1"),
        *("--train-frames=4", "--slots-per-split=2"),
    )
    assert ended.code == 0, ended.stderr
    assert "starting it again" not in ended.stderr


def test_no_time_is_charged_to_both_members_of_an_actor(make_shared):
    shared = make_shared(**SIZES, **IMPALA)
    learner, actor = Publishing(shared), make_actor(shared)
    learner.versions = []
    rows = [shared.progress.stage_seconds(Role(kind, 0)) for kind in ("rollout", "policy")]
    before, spent_s = sum(row.sum() for row in rows), 0.0
    while len(learner.versions) < 30:
        start_s = time.perf_counter()
        actor.step()
        spent_s += time.perf_counter() - start_s
        learner.step()
    charged_s = sum(row.sum() for row in rows) - before
    assert 0.5 * spent_s < charged_s <= spent_s
    actor.close()


def test_an_actor_that_was_started_again_draws_other_actions(make_shared):
    shared = make_shared(**SIZES, **IMPALA)
    Publishing(shared)
    seeds = []
    for restarts in range(3):
        shared.progress.restarts[0] = restarts
        seeds.append(make_policy_worker(shared, 0).generator.initial_seed())
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(("system", "niceness"), [({}, [5]), (IMPALA, [])])
def test_a_process_with_a_network_is_not_nice(make_shared, monkeypatch, system, niceness):
    asked = []
    monkeypatch.setattr(os, "nice", asked.append)
    pin_and_nice(make_shared(**SIZES, **system, worker_nice=5).config, 0)
    assert asked == niceness


def test_seed_acts_with_the_weights_of_the_last_optimizer_step(make_shared):
    """Between the minibatches of a training batch, too; and none are published."""
    sizes = {**SIZES, "batch_size": 3 * T * N, "minibatches": 3, "slots_per_split": 12}
    shared = make_shared(**sizes, **SEED, epochs=2)
    network = make_process(shared, LEARNER)
    learner, policy = network.workers
    rollouts = make_rollout_worker(shared, 0, Mailbox())
    acted_with, in_training = [], set()
    while shared.progress.learner_steps < 30:
        rollouts.step()
        network.step()
        if policy.weights.version != (acted_with or [-1])[-1]:
            acted_with.append(policy.weights.version)
            pairs = zip(
                policy.model.state_dict().values(), learner.model.state_dict().values(), strict=True
            )
            assert all(torch.equal(mine, learners) for mine, learners in pairs)
            in_training.add(learner.is_training)
    assert len(acted_with) > 20, "not only those of whole training batches, which make 6 steps"
    assert in_training == {True, False}
    assert shared.weights._copies is None, "weights have crossed to another process"
    rollouts.close()


def weights_of(model):
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_an_unroll_of_a3c_is_played_and_learned_from_with_one_copy(make_shared):
    """Whatever others make of the block meanwhile; the next one begins with what it is then."""
    shared = make_shared(**SIZES | A3C)
    process = make_process(shared, Role("rollout", 0))
    _, policy, learner = process.workers
    learned_with, versions = [], []
    loss = learner.algorithm.loss

    def observed_loss(model, target, batch, version):
        assert model is learner.model
        learned_with.append(weights_of(model))
        versions.append((batch.policy_version, int(version)))
        return loss(model, target, batch, version)

    learner.algorithm.loss = observed_loss
    acted_with = []
    refresh = policy.weights.refresh

    def observed_refresh(model):
        has_changed = refresh(model)
        acted_with.append(weights_of(model))
        return has_changed

    policy.weights.refresh = observed_refresh
    while len(learned_with) < 10:
        process.step()
        learner.parameters._weights.add_(0.01)  # another's update
        shared.progress.updates[0, 0] += 1
    for acted, learned, (policy_version, version) in zip(
        acted_with, learned_with, versions, strict=False
    ):
        assert all(torch.equal(a, b) for a, b in zip(acted, learned, strict=True))
        assert (policy_version == policy_version[0, 0]).all()
        assert version - policy_version[0, 0] >= T - 1, "others' updates are counted as lag"
    for first, second in pairwise(acted_with):
        assert not torch.equal(first[0], second[0])
    process.close()
