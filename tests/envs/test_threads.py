"""Environments that wait, and step at the same time in threads."""

import threading
import time
from itertools import count

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from sfrl import envs
from sfrl.envs import EnvError, EnvOptions
from sfrl.experience.trajectory_buffer import Owner
from sfrl.ipc.index_queue import pack, unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.topology import Role
from sfrl.run.roles import make_rollout_worker

LIMIT_S = 20.0


class Gated(gymnasium.Env):
    """Copy i steps once gate i is open; `fault` is what a step raises or gives."""

    gates = tuple(threading.Event() for _ in range(4))
    numbers = count()
    faults: dict[int, object] = {}  # noqa: RUF012

    def __init__(self):
        self.observation_space = Box(-1, 1, (1,), np.float32)
        self.action_space = Discrete(2)
        self.index = next(self.numbers) % len(self.gates)
        self.num_steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.gates[self.index].wait(LIMIT_S)
        self.num_steps += 1
        fault = self.faults.get(self.index)
        if isinstance(fault, Exception):
            raise fault
        obs = np.zeros(1, np.float32) if fault is None else fault
        return obs, 1.0, self.num_steps % 3 == 0, False, {}


gymnasium.register("Gated-v0", Gated)


@pytest.fixture(autouse=True)
def gates():
    Gated.numbers, Gated.faults = count(), {}
    for gate in Gated.gates:
        gate.set()
    yield Gated.gates
    for gate in Gated.gates:
        gate.set()


def wait_until(condition):
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


@pytest.mark.parametrize("threads", [2, 4, 64])
def test_they_step_as_without_threads(threads):
    rows = []
    for options in (EnvOptions(), EnvOptions(threads=threads)):
        env = envs.make_vec_env("CartPole-v1", 4, 3, options)
        rng, of_one = np.random.default_rng(0), [env.reset()["obs"]]
        for _ in range(150):
            env.send(rng.integers(2, size=4))
            result = env.recv()
            of_one += [result.obs["obs"], *result[1:4]]
        assert env.stepping[0] == -1
        rows.append(of_one)
        env.close()
    for ours, theirs in zip(*rows, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sum(array.sum() for array in rows[0][3::4]) > 10  # ends


def test_all_step_at_the_same_time(gates):
    env = envs.make_vec_env("Gated-v0", 4, 0, EnvOptions(threads=4))
    env.reset()
    for gate in gates:
        gate.clear()
    env.send(np.zeros(4, np.int64))
    for i in (3, 2, 1):  # which none could do that waits for the one before it
        gates[i].set()
        wait_until(env._begun[i].done)
    assert not env.is_ready()
    assert env.stepping[0] == 0
    gates[0].set()
    wait_until(env.is_ready)
    assert env.recv().rewards.tolist() == [1] * 4


def test_the_oldest_that_has_not_answered_is_told(gates):
    env = envs.make_vec_env("Gated-v0", 4, 0, EnvOptions(threads=2))
    env.reset()
    gates[2].clear()
    env.send(np.zeros(4, np.int64))
    for i in (0, 1, 3):
        wait_until(env._begun[i].done)
    assert not env.is_ready()
    assert env.stepping[0] == 2
    env.stepping[0] = -1
    receiving = threading.Thread(target=env.recv)
    receiving.start()
    wait_until(lambda: env.stepping[0] == 2)
    gates[2].set()
    receiving.join()
    assert env.stepping[0] == -1


def test_faults_name_the_environment_and_the_step():
    env = envs.make_vec_env("Gated-v0", 3, 0, EnvOptions(threads=3))
    env.reset()
    Gated.faults = {1: RuntimeError("it broke")}
    env.send(np.zeros(3, np.int64))
    with pytest.raises(RuntimeError, match="it broke") as caught:
        env.recv()
    assert caught.value.__notes__ == ["in step 1 of Gated-v0, env 1, with action 0"]
    env.close()


def test_the_rules_hold_as_without_threads():
    env = envs.make_vec_env("Gated-v0", 3, 0, EnvOptions(threads=3))
    env.reset()
    Gated.faults = {1: np.full(1, np.nan, np.float32)}
    env.send(np.zeros(3, np.int64))
    assert env.recv().truncated.tolist() == [False, True, False]
    Gated.faults = {2: np.zeros(2, np.float32)}
    env.send(np.zeros(3, np.int64))
    with pytest.raises(EnvError, match="Gated-v0, env 2, step 2: its observation is float32"):
        env.recv()


def test_closing_waits_for_steps_that_have_begun(gates):
    env = envs.make_vec_env("Gated-v0", 2, 0, EnvOptions(threads=2))
    env.reset()
    gates[1].clear()
    env.send(np.zeros(2, np.int64))
    wait_until(env._begun[1].running)  # what has not begun is not waited for
    closing = threading.Thread(target=env.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    gates[1].set()
    closing.join(LIMIT_S)
    assert not closing.is_alive()


def test_a_split_that_waits_does_not_hold_up_the_other(make_shared, gates):
    shared = make_shared(
        env="tests.envs.test_threads:Gated-v0",
        frameskip=1,
        num_workers=1,
        num_splits=2,
        envs_per_worker=2,
        threads_per_worker=2,
        slots_per_split=2,
        rollout_length=5,
        batch_size=5,
        minibatches=1,
    )
    Gated.numbers = count()
    worker = make_rollout_worker(shared, 0, Mailbox())
    buffer, channels = shared.buffer, shared.channels
    stepping = shared.progress.stepping[0]

    def answer():
        """As the policy worker does, with action 0."""
        for slot, t, generation in map(unpack, channels.action_requests[0].get_many(100)):
            buffer.transfer(slot, Owner.POLICY_WORKER, Owner.ROLLOUT_WORKER)
            queue, producer = channels.replies_by_slot(Role("policy", 0))[slot]
            queue.put(pack(slot, t, generation), producer)

    def turn():
        answer()
        if not worker.step():
            worker.wait(0.5)

    gates[0].clear()  # of the first split
    wait_until(lambda: [turn(), worker.splits[1].slot < 0][1])  # it has filled all its slots
    assert worker.splits[0].t == 0
    assert stepping.tolist() == [0, -1]
    gates[0].set()
    wait_until(lambda: [turn(), worker.splits[0].slot < 0][1])
    assert stepping.tolist() == [-1, -1]
    worker.close()


def test_the_worker_waits_in_the_end_so_that_the_watchdog_sees_it(make_shared, gates):
    shared = make_shared(
        env="tests.envs.test_threads:Gated-v0",
        frameskip=1,
        num_workers=1,
        num_splits=1,
        envs_per_worker=2,
        threads_per_worker=2,
        env_timeout=0.01,
        rollout_length=5,
        batch_size=10,
        minibatches=1,
    )
    Gated.numbers = count()
    worker = make_rollout_worker(shared, 0, Mailbox())
    split = worker.splits[0]
    gates[0].clear()
    split.env.send(np.zeros(2, np.int64))
    split.sent_s = time.monotonic()
    worker.stepping.append(split)
    wait_until(lambda: worker._next_ready() is split)
    assert not split.env.is_ready()
    gates[0].set()
    worker.close()
