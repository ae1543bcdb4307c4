"""Policy worker: what it writes into rows, with which weights, in which batches."""

import dataclasses
from collections import deque

import numpy as np
import pytest
import torch

from sfrl.algorithms import make_algorithm
from sfrl.envs import OBS
from sfrl.experience.trajectory_buffer import Owner
from sfrl.ipc.index_queue import unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.topology import Role
from sfrl.nets import convolve
from sfrl.nets.distributions import Categorical
from sfrl.nets.encoders import NatureCNN
from sfrl.run.roles import make_learner, make_policy_worker
from sfrl.workers.inference import HostBatch
from tests.actors import Actors
from tests.nets.test_convolve import needs_extension
from tests.workers.test_learner import MEMORIES

T, N = 8, 4  # rollout length, environments per split
CARTPOLE = {
    "env": "CartPole-v1",
    "frameskip": 1,
    "num_workers": 2,
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


class Users(NatureCNN):
    """A user's encoder made of ours."""

    def __init__(self, obs_shape):
        super().__init__(obs_shape, obs_scale=1.0)

    def forward(self, obs):
        return super().forward(obs, torch.float32)


@pytest.fixture
def make_policy(make_shared):
    """Shared objects, a model whose weights are published as version 3, and a policy worker."""

    def make(**settings):
        shared = make_shared(**CARTPOLE | settings)
        torch.manual_seed(0)
        model = make_algorithm(shared.config, shared.env).make_model()
        with torch.no_grad():
            model.policy_head.weight.mul_(300)  # probabilities far from uniform
        shared.weights.publish(model, version=3)
        return shared, model, make_policy_worker(shared, 0)

    return make


def request(shared, *rows):
    """Ask policy worker 0 for actions on rows (slot, t), with random observations."""
    rng = np.random.default_rng([slot + 100 * t for slot, t in rows])
    for slot, t in rows:
        shared.buffer.transfer(slot, Owner(shared.buffer._owners[slot]), Owner.POLICY_WORKER)
        row = shared.buffer.obs[OBS][slot, t]
        row[:] = rng.normal(size=row.shape)
        shared.buffer.valid[slot, t] = True
        slots = shared.topology.slots
        sender = Role("rollout", slots.rollout[slots.split[slot]])
        queue, producer = shared.channels.outbox(sender, Role("policy", 0))
        queue.put(shared.buffer.message(slot, t), producer)


def replies(shared, worker):
    return [unpack(m)[:2] for m in shared.channels.replies[worker].get_many(100)]


def batch_sizes_of(policy):
    """Grows with every forward pass of the policy."""
    sizes = []
    forward = policy.model.preferences

    def preferences(obs, rnn_state=None):
        sizes.append(len(obs[OBS]))
        return forward(obs, rnn_state)

    policy.model.preferences = preferences
    return sizes


def test_all_waiting_requests_share_one_forward_pass(make_policy):
    shared, _, policy = make_policy()
    sizes = batch_sizes_of(policy)
    request(shared, (0, 0), (3, 0), (6, 0))
    assert policy.step()
    assert sizes == [3 * N]
    assert replies(shared, 0) == [(0, 0), (3, 0)]
    assert replies(shared, 1) == [(6, 0)]
    assert not policy.step()


def test_a_forward_pass_has_at_most_policy_batch_size_rows(make_policy):
    shared, _, policy = make_policy(policy_batch_size=2 * N + 1)
    sizes = batch_sizes_of(policy)
    request(shared, (0, 0), (2, 0), (4, 0), (6, 0), (7, 0))
    while policy.step():
        pass
    assert sizes == [2 * N, 2 * N, N]
    assert replies(shared, 0) + replies(shared, 1) == [(0, 0), (2, 0), (4, 0), (6, 0), (7, 0)]


def test_a_batch_may_be_answered_while_the_next_is_under_way(make_policy):
    """As on a GPU: with the version and the actions of its own launch."""
    shared, model, policy = make_policy()
    policy._batches = deque([HostBatch(policy._act), HostBatch(policy._act)])
    policy._max_in_flight = 1
    request(shared, (0, 0), (6, 0))
    assert policy.step()
    assert not replies(shared, 0)
    shared.weights.publish(model, version=5)
    request(shared, (3, 0))
    assert policy.step()
    assert (replies(shared, 0), replies(shared, 1)) == ([(0, 0)], [(6, 0)])
    assert policy.step(), "answers what is under way when nothing else comes"
    assert replies(shared, 0) == [(3, 0)]
    assert not policy.step()
    buffer = shared.buffer
    for slot, version in ((0, 3), (6, 3), (3, 5)):
        assert buffer.policy_version[slot, 0] == version
        assert_acted_by(model, buffer, slot, 0)


def assert_acted_by(model, buffer, slot, t):
    """The row has the log-probabilities of its own actions under the model."""
    obs = torch.from_numpy(buffer.obs[OBS][slot, t])
    policy = Categorical(model.step({OBS: obs}).logits)
    log_probs = policy.log_prob(torch.from_numpy(buffer.actions[slot, t]))
    np.testing.assert_allclose(buffer.acted["log_probs"][slot, t], log_probs, rtol=1e-5, atol=1e-6)


def test_rows_get_the_log_probs_of_their_actions(make_policy):
    shared, model, policy = make_policy()
    rows = [(0, 0), (3, 0), (6, 0)]
    request(shared, *rows)
    policy.step()
    buffer = shared.buffer
    for slot, t in rows:
        assert_acted_by(model, buffer, slot, t)
        assert buffer.policy_version[slot, t] == 3


def test_actions_are_sampled_from_the_policy(make_policy):
    shared, model, policy = make_policy(rollout_length=128, batch_size=128 * N)
    obs = np.random.default_rng(0).normal(scale=2, size=(N, 4))
    for t in range(128):
        request(shared, (0, t))
        shared.buffer.obs[OBS][0, t] = obs
        policy.step()
        assert replies(shared, 0) == [(0, t)]
    row = torch.from_numpy(shared.buffer.obs[OBS][0, 0])
    probs = model.step({OBS: row}).logits.softmax(1)[:, 1].numpy()
    assert probs.max() - probs.min() > 0.3
    deviation = np.sqrt(probs * (1 - probs) / 128)
    frequencies = shared.buffer.actions[0].mean(axis=0)
    assert (np.abs(frequencies - probs) < 4 * deviation).all()


def test_a_row_is_complete_before_its_index_is_put(make_policy):
    shared, _, policy = make_policy()
    rows_at_put = []
    queue = shared.channels.replies[0]

    class Reply:
        def put(self, message, producer):
            slot, t, _ = unpack(message)
            shared.buffer.check_owner(slot, Owner.ROLLOUT_WORKER)
            fields = *shared.buffer.acted.values(), shared.buffer.policy_version
            rows_at_put.append([field[slot, t].copy() for field in fields])
            queue.put(message, producer)

    policy.replies = [(Reply(), producer) for _, producer in policy.replies]
    request(shared, (0, 0), (3, 0))
    policy.step()
    assert len(rows_at_put) == 2
    for actions, log_probs, version in rows_at_put:
        assert (actions >= 0).all()
        assert np.isfinite(log_probs).all()
        assert version == 3


def test_a_slot_reclaimed_while_it_is_answered_stays_free(make_policy, monkeypatch):
    """Its worker died, and the trainer was faster than the policy worker's last lines."""
    shared, _, policy = make_policy()
    buffer = shared.buffer

    class Reclaims:
        def __setitem__(self, row, version):
            buffer.reclaim(row[0])

    monkeypatch.setattr(buffer, "policy_version", Reclaims())
    request(shared, (0, 0))
    policy.step()
    buffer.check_owner(0, Owner.FREE)
    (message,) = [unpack(m) for m in shared.channels.replies[0].get_many(2)]
    assert not buffer.is_current(message), "the worker that is started next ignores it"


def test_a_slot_reclaimed_right_before_it_is_given_back_stays_free(make_policy, monkeypatch):
    """The policy worker was stopped between two lines of its answer."""
    shared, _, policy = make_policy()
    buffer = shared.buffer
    transfer = buffer.transfer

    def late(slot, giver, taker):
        buffer.reclaim(slot)
        transfer(slot, giver, taker)

    request(shared, (0, 0))
    monkeypatch.setattr(buffer, "transfer", late)
    policy.step()
    buffer.check_owner(0, Owner.FREE)


def test_a_value_network_of_its_own_is_not_run_to_act(make_shared):
    shared = make_shared(**CARTPOLE, value_encoder="separate")
    make_learner(shared, Mailbox(), Mailbox(), None)
    policy = make_policy_worker(shared, 0)
    seen = []
    for name in ("encoder", "value_encoder"):
        encoder = getattr(policy.model, name)
        encoder.register_forward_hook(lambda *_, name=name: seen.append(name))
    request(shared, (0, 0))
    policy.step()
    assert seen == ["encoder"]


def test_weights_published_between_batches_act_from_the_next_one_on(make_policy):
    shared, model, policy = make_policy()
    forward = policy.model.preferences

    def publish_during(obs, rnn_state=None):
        with torch.no_grad():
            model.policy_head.bias[1] = 1000
        shared.weights.publish(model, version=11)
        return forward(obs, rnn_state)

    policy.model.preferences = publish_during
    request(shared, (0, 0), (2, 0))
    policy.step()
    policy.model.preferences = forward
    request(shared, (0, 1), (2, 1))
    policy.step()
    assert shared.buffer.policy_version[[0, 2], 0].tolist() == [3, 3]
    assert (shared.buffer.acted["log_probs"][[0, 2], 0] < 0).all()
    assert shared.buffer.policy_version[[0, 2], 1].tolist() == [11, 11]
    assert (shared.buffer.acted["log_probs"][[0, 2], 1] == 0).all(), "no doubt about the action"


def test_a_frozen_policy_is_saved_and_a_checkpoint_without_one_has_the_newest(make_policy):
    shared, model, policy = make_policy(system="impala", num_splits=1, envs_per_worker=N)
    policy.weights.refresh(policy.model)
    state = policy.state()
    with torch.no_grad():
        model.policy_head.bias[1] = 1000
    shared.weights.publish(model, version=11)
    for has_policy, version, bias in ((True, 3, 0), (False, 11, 1000)):
        resumed = make_policy_worker(shared, 0)
        of_policy = () if has_policy else ("model", "version")
        resumed.load_state({name: value for name, value in state.items() if name not in of_policy})
        assert resumed.weights.version == version
        assert resumed.model.policy_head.bias[1] == bias


@needs_extension
def test_images_that_are_kept_act_as_others_do(make_policy, monkeypatch):
    """Whoever is in a batch, in whatever order, and with new weights."""
    monkeypatch.setattr(convolve, "PAYS", True)
    shared, model, policy = make_policy(env="Pong", frameskip=4, model="nature_cnn")
    numbers = []
    forward = policy.model.preferences

    def preferences(obs, rnn_state=None):
        numbers.append(policy.environments.rows.tolist())
        return forward(obs, rnn_state)

    policy.model.preferences = preferences
    for t, slots in enumerate(([0, 2], [2, 0, 4], [4], [0, 2, 4])):
        if t == 2:
            with torch.no_grad():
                for parameter in model.encoder.parameters():
                    parameter.neg_()
            shared.weights.publish(model, version=11)
        request(shared, *((slot, t) for slot in slots))
        policy.step()
        for slot in slots:
            assert_acted_by(model, shared.buffer, slot, t)
    first, second, third = ([n * N + i for i in range(N)] for n in range(3))
    every = first + second + third
    assert [sorted(batch) for batch in numbers] == [first + second, every, third, every]


@pytest.mark.parametrize(
    ("settings", "precision", "is_kept"),
    [
        ({}, torch.float32, True),
        ({}, torch.bfloat16, True),
        ({"model": "tests.workers.test_policy_worker:Users"}, torch.float32, False),
    ],
    ids=["ours in float32", "ours in bfloat16", "a user's"],
)
@needs_extension
def test_which_networks_keep_images(make_policy, monkeypatch, settings, precision, is_kept):
    monkeypatch.setattr(convolve, "PAYS", True)
    _, model, policy = make_policy(
        **{"env": "Pong", "frameskip": 4, "model": "nature_cnn"} | settings
    )
    actor = model.inference_copy(precision)
    actor.keep_images(policy.environments)
    policy.environments.rows = np.arange(N, dtype=np.int32)
    layers = [layer for layer in actor.modules() if isinstance(layer, convolve.Convolution)]
    assert [layer.kept is not None for layer in layers] == [is_kept] * 3


@needs_extension
def test_a_serial_run_keeps_no_images(make_policy, monkeypatch):
    """Where it was interrupted would show in the last bits."""
    monkeypatch.setattr(convolve, "PAYS", True)
    shared, _, _ = make_policy(env="Pong", frameskip=4, model="nature_cnn")
    serial = shared._replace(config=dataclasses.replace(shared.config, serial=True))
    for objects, is_kept in ((shared, True), (serial, False)):
        policy = make_policy_worker(objects, 0)
        policy.environments.rows = np.arange(N, dtype=np.int32)
        assert (policy.model.encoder.conv2.kept is not None) == is_kept


def test_recurrent_state_is_kept_by_split_and_reset_after_an_invalid_row(make_policy):
    shared, _, policy = make_policy(rnn="gru", rnn_size=6)
    for t in range(T):
        request(shared, (0, t), (2, t))
        if t == 0:
            shared.buffer.obs[OBS][0, t, 1] = np.nan  # it stays in the state as long as the episode
        if t == T - 1:
            shared.buffer.valid[0, t] = [True, False, True, True]
        policy.step()
        assert len(replies(shared, 0)) == 2
    request(shared, (1, 0), (3, 0))
    policy.step()
    assert (shared.buffer.rnn_state[[0, 2]] == 0).all(), "before the first row of all"
    was_reset = (shared.buffer.rnn_state[[1, 3]] == 0).all(axis=2)
    np.testing.assert_array_equal(was_reset, [[False, True, False, False], [False] * N])
    assert not np.allclose(shared.buffer.rnn_state[1], shared.buffer.rnn_state[3])


@pytest.mark.parametrize("memory", MEMORIES)
def test_noise_lasts_an_episode_and_no_longer(make_policy, memory):
    """With a correlation of 1 it is the same in all rows of an episode."""
    shared, model, policy = make_policy(
        env="tests.tiny_envs:Pointer-v0", noise_correlation=1.0, **memory
    )
    with torch.no_grad():
        model.policy_head.weight.zero_()  # an action is its noise
    shared.weights.publish(model, version=4)
    last, first = 6, 0  # slots of the last split and of the first
    for t in range(T):
        request(shared, (first, t), (last, t))
        shared.buffer.valid[last, t, -1] = t != 2
        policy.step()
    request(shared, (last + 1, 0))
    policy.step()
    noise = shared.buffer.actions[last, :, -1]  # [T, 2]
    assert (noise[:3] == noise[0]).all()
    assert (noise[3:] == noise[3]).all()
    assert (noise[0] != noise[3]).all()
    assert (noise != 0).all()
    assert (shared.buffer.actions[last + 1, 0, -1] == noise[3]).all(), "from slot to slot"
    others = shared.buffer.actions[[first, last], 0].reshape(-1, 2)
    assert len(np.unique(others, axis=0)) == len(others), "each environment has its own"


def test_observations_are_normalized_by_the_published_statistics(make_policy):
    """Acting is that of a network without normalization on what it makes of them."""
    shared, model, policy = make_policy(normalize_obs=True)
    assert shared.config.normalize_obs
    statistics = {3: (0.0, 1.0), 8: (torch.tensor([2.0, -1.0, 0.5, 3.0]), 2.0)}
    for t, (version, (mean, deviation)) in enumerate(statistics.items()):
        [norm] = model.normalizers
        norm.mean.copy_(torch.as_tensor(mean))
        norm.variance.copy_(torch.as_tensor(deviation) ** 2)
        shared.weights.publish(model, version=version)
        rows = [(0, t), (6, t)]
        request(shared, *rows)
        policy.step()
        plain = make_algorithm(
            dataclasses.replace(shared.config, normalize_obs=False), shared.env
        ).make_model()
        weights = model.state_dict()
        plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
        buffer = shared.buffer
        for slot, _ in rows:
            assert buffer.policy_version[slot, t] == version
            obs = (torch.from_numpy(buffer.obs[OBS][slot, t]) - mean) / deviation
            log_probs = Categorical(plain.step({OBS: obs.float()}).logits).log_prob(
                torch.from_numpy(buffer.actions[slot, t])
            )
            np.testing.assert_allclose(
                buffer.acted["log_probs"][slot, t], log_probs, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("num_policy_workers", [1, 2])
@pytest.mark.parametrize("memory", MEMORIES)
def test_the_learner_finds_the_probabilities_that_the_policy_worker_acted_with(
    make_shared, memory, num_policy_workers
):
    shared = make_shared(**CARTPOLE, **memory, num_policy_workers=num_policy_workers)
    learner = make_learner(shared, Mailbox(), Mailbox(), None)
    with torch.no_grad():
        learner.model.policy_head.weight.mul_(100)
    learner.publish()
    actors = Actors(shared)
    num_ends = 0
    splits = set()
    for _ in range(16):
        slots = actors.collect(4)
        splits |= {shared.topology.slots.split[slot] for slot in slots}
        for slot in slots:
            rows = learner.experience.gather(torch.full((N,), slot), torch.arange(N))
            logits, _ = learner.model.unroll(rows.obs, rows.rnn_state, rows.valid)
            log_probs = Categorical(logits[:-1]).log_prob(rows.acted["actions"])
            torch.testing.assert_close(log_probs, rows.acted["log_probs"], rtol=1e-4, atol=1e-5)
            num_ends += int((~rows.valid[1:-2]).sum())
            learner.slots.give_back([slot])
    assert splits == {0, 1, 2, 3}
    assert num_ends > 20, "episodes ended in the middle of slots"


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_warm_up_takes_every_size_of_batch_and_answers_nobody(make_policy, memory):
    shared, _, policy = make_policy(policy_batch_size=3 * N, **memory)
    sizes = batch_sizes_of(policy)
    policy.warm_up()
    assert set(sizes) == {N, 2 * N, 3 * N}
    assert not replies(shared, 0)
    assert not policy.rnn_states.any()
