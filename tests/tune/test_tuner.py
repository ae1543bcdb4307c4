"""The tuner: the model of throughput, what it may change, its cache, and a start of train.py."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.commands import bench
from sfrl.commands import train as cli
from sfrl.ipc.shared_memory import ShortageError
from sfrl.settings import defaults, machine
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import load_config
from sfrl.settings.config import Config
from sfrl.tune import children as measuring
from sfrl.tune import components, tuner
from sfrl.tune.throughput import Costs, predict
from tests.runs import children, finish, interrupt, run_training, segments, training, wait_for

# Pong on 2 cores, one epoch: core microseconds by processes' CPU times, 8 and 16 environments in a
# split: rollout 343 and 307 per decision, inference 182 and 111, learning 202.
PONG = Costs(271.0, 576.0, 1136.0, 40.0, 202.0, "bfloat16", on_gpu=False)
SLOW_REPLIES = Costs(100.0, 100.0, 2000.0, 1.0, 10.0, "float32", on_gpu=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def arranged(num_workers: int, num_splits: int, envs_per_worker: int) -> Config:
    return ActorCriticConfig(
        num_workers=num_workers, num_splits=num_splits, envs_per_worker=envs_per_worker
    )


def in_cache(config: Config, costs: Costs) -> None:
    tuner.cache_path().parent.mkdir(parents=True)
    key = tuner.cache_key(config, tuner.usable_cores())
    tuner.cache_path().write_text(json.dumps({key: costs._asdict()}))


# --- the model ---


@pytest.mark.parametrize(("num_splits", "frames_per_s"), [(1, 12_000), (2, 10_300)])
def test_the_model_meets_what_was_measured(num_splits, frames_per_s):
    rates = predict(arranged(2, num_splits, 16), PONG, 2)
    assert 4 * rates.expected == pytest.approx(frames_per_s, rel=0.05)
    assert rates.bottleneck == "cores"


def test_on_two_cores_one_split_wins_and_a_third_worker_gains_nothing():
    options = [arranged(3, 1, 16), arranged(2, 2, 16), arranged(2, 1, 16)]
    chosen = tuner.choose(options, PONG, 2)
    assert chosen == dataclasses.replace(arranged(2, 1, 16), precision="bfloat16")


# As a run's first start measured them on two cores of an EPYC (Zen 4), one epoch with Muon. In turn
# 1 x 32 and 2 x 16 made 8,005, 8,608 and 7,171, 7,446 frames/s in Pong, and 7,092, 6,898 and 7,581,
# 7,034 in Breakout (docs/experiments.md, "One worker or two").
MUON_PONG = Costs(272.4, 26.6, 1207.3, 97.6, 437.9, "bfloat16", on_gpu=False)
MUON_BREAKOUT = Costs(334.6, 42.0, 1070.7, 94.2, 408.3, "bfloat16", on_gpu=False)


@pytest.mark.parametrize(
    ("costs", "num_workers", "frames_per_s"), [(MUON_PONG, 1, 8_300), (MUON_BREAKOUT, 2, 7_300)]
)
def test_a_split_that_is_alone_waits_for_no_core(costs, num_workers, frames_per_s):
    """Its worker and the policy worker take turns on one core, and the learner has the other."""
    options = [arranged(1, 1, 32), arranged(2, 1, 16)]
    chosen = tuner.choose(options, costs, 2)
    assert chosen.num_workers == num_workers
    assert 4 * predict(chosen, costs, 2).expected == pytest.approx(frames_per_s, rel=0.05)
    alone = options[0]
    assert predict(alone, costs, 2).cores == math.inf
    assert predict(alone, costs, 1).cores < math.inf
    assert predict(dataclasses.replace(alone, torch_threads=2), costs, 2).cores < math.inf


@pytest.mark.parametrize(
    ("times_us", "slope", "intercept"),
    [
        ([300.0, 900.0], 100.0, 100.0),
        ([600.0, 3_120.0], 333.3, 0.01),  # 8 in a busy moment: 390 each, and 2 of them 300
        ([900.0, 300.0], 0.01, 360.0),
    ],
)
def test_costs_of_which_one_would_be_below_0_are_fitted_without_it(times_us, slope, intercept):
    assert tuner._line([2, 8], times_us) == pytest.approx((slope, intercept), rel=1e-3)


def test_where_cores_are_free_a_second_split_hides_the_wait_for_actions():
    one, two = (
        predict(dataclasses.replace(arranged(4, s, 16), num_policy_workers=4), SLOW_REPLIES, 16)
        for s in (1, 2)
    )
    assert one.bottleneck == two.bottleneck == "rollout"
    assert two.rollout > 1.2 * one.rollout


def test_inference_batches_grow_until_the_policy_worker_keeps_up():
    config = dataclasses.replace(arranged(8, 1, 8), batch_size=512)
    rates = predict(config, SLOW_REPLIES, 16)
    for_one_request = 1e6 / (SLOW_REPLIES.batch_us / 8 + SLOW_REPLIES.row_us)
    assert rates.inference > 2 * for_one_request
    capped = dataclasses.replace(config, policy_batch_size=8)
    assert predict(capped, SLOW_REPLIES, 16).inference == pytest.approx(for_one_request)


def test_the_note_tells_what_limits_the_machine_and_what_would_help():
    config = tuner.choose([arranged(2, 1, 16)], PONG, 2)
    of_more = [config, arranged(4, 1, 8)]
    note = tuner.describe(config, PONG, 2, [config], of_more, frameskip=4)
    assert note.startswith(
        "tuned for 2 cores: 2 workers x 16 envs, 1 split, 1 policy worker, 1 lea"
    )
    now = predict(config, PONG, 2).expected
    assert (
        f"; {4 * now:,.0f} frames/s expected: {1e6 / 60 / (4 * now):.1f} minutes per mill" in note
    )
    assert "; limited by the cores (work: 44% environments, 6% the workers' P" in note
    assert "18% acting, 33% learning)" in note
    gain = predict(tuner.choose(of_more, PONG, 4), PONG, 4).expected / now
    assert note.endswith(
        "what would help most: a GPU up to 1.8 times the frames/s, "
        f"twice the cores up to {gain:.1f} times the frames/s"
    )
    with_gpu = PONG._replace(on_gpu=True)
    assert "GPU" not in tuner.describe(config, with_gpu, 2, [config], of_more, frameskip=4)


def test_the_note_names_cores_first_where_environments_are_what_costs():
    slow_env = PONG._replace(env_us=2000.0)
    config, of_more = arranged(2, 1, 16), arranged(4, 1, 16)
    note = tuner.describe(config, slow_env, 2, [config], [of_more], frameskip=4)
    helps = note.partition("what would help most: ")[2]
    assert helps.startswith("twice the cores up to 2.0 times the frames/s, a GPU up to 1.1 times")


def test_cores_that_would_stand_idle_are_not_recommended():
    """64 of them wait for one learner, and twice as many would."""
    slow_learner = PONG._replace(learn_us=1000.0)
    config = ActorCriticConfig(num_workers=16, envs_per_worker=16, num_splits=1, batch_size=2048)
    candidates = tuner.arrangements(config, (), 64)
    chosen = tuner.choose(candidates, slow_learner, 64)
    assert chosen.num_workers <= 4
    assert predict(chosen, slow_learner, 64).bottleneck == "learning"
    of_more = tuner.arrangements(config, (), 128)
    note = tuner.describe(chosen, slow_learner, 64, candidates, of_more, frameskip=4)
    assert "limited by the learner, which is one process" in note
    assert note.endswith("; twice the cores would not help")
    assert "what would help most: a GPU up to " in note


def test_a_learner_that_all_wait_for_gets_threads_where_there_are_cores_for_them():
    slow_learner = PONG._replace(learn_us=1000.0, parallel=0.9)
    config = ActorCriticConfig(num_workers=8, envs_per_worker=16, num_splits=1, batch_size=1024)
    threads, rates = {}, {}
    for cores in (2, 4, 8, 16):
        chosen = tuner.choose(tuner.arrangements(config, (), cores), slow_learner, cores)
        threads[cores], rates[cores] = chosen.torch_threads, predict(chosen, slow_learner, cores)
    assert threads == {2: 2, 4: 2, 8: 4, 16: 8}
    learner_us = 1000 * (0.1 + 0.9 / 4)
    assert rates[8].learning == pytest.approx(1e6 / learner_us)
    one_thread = dataclasses.replace(config, torch_threads=1)
    assert rates[8].expected > 2 * predict(one_thread, slow_learner, 8).expected
    alone = slow_learner._replace(parallel=0.0)  # its threads would gain nothing
    four_threads = dataclasses.replace(config, torch_threads=4)
    assert predict(four_threads, alone, 8).cores < 0.5 * predict(one_thread, alone, 8).cores
    assert tuner.choose(tuner.arrangements(config, (), 8), alone, 8).torch_threads == 1
    fixed = tuner.arrangements(config, ["torch_threads"], 8)
    assert {candidate.torch_threads for candidate in fixed} == {1}


@pytest.mark.parametrize(
    ("costs", "threads"),
    [  # Pong, as measured on two cores of an EPYC (Zen 4): a run makes 0.94 and 1.26 times as
        # much with two threads. The second is the first with the most that noise could make of it.
        (Costs(202.0, 36.0, 740.0, 45.0, 426.0, "bfloat16", on_gpu=False, parallel=0.78), 1),
        (Costs(202.0, 36.0, 740.0, 45.0, 426.0, "bfloat16", on_gpu=False, parallel=1.0), 1),
        (Costs(205.0, 42.0, 899.0, 109.0, 1043.0, "float32", on_gpu=False, parallel=1.0), 2),
    ],
)
def test_two_cores_share_learning_where_one_would_wait_for_it(costs, threads):
    config = ActorCriticConfig(num_workers=2, envs_per_worker=16, num_splits=1)
    assert tuner.choose(tuner.arrangements(config, (), 2), costs, 2).torch_threads == threads


def test_below_two_cores_nothing_is_shared():
    """What a second thread brings is measured from two on."""
    config = ActorCriticConfig(num_workers=1, envs_per_worker=32, num_splits=1)
    for cores, threads in ((1.0, {1}), (1.9, {1}), (2.0, {1, 2})):
        assert {c.torch_threads for c in tuner.arrangements(config, (), cores)} == threads


@pytest.mark.parametrize("has_gpu", [True, False])
def test_environments_and_networks_wait_for_each_other_as_often(has_gpu, monkeypatch):
    """With a GPU as well, which needs no second thread: else they would wait for ever."""
    waits = {"environments": 0, "networks": 0}

    class Start:
        def __init__(self, who):
            self.who = who

        def wait(self):
            waits[self.who] += 1

    def inference(config, spec, sizes, seconds, precisions, ready):
        ready()
        return [components.Inference("float32", size, 10.0 * size, 0.0) for size in sizes]

    def rollout(config, spec, seconds, ready=lambda: None):
        ready()
        return components.Rollout(10.0 * config.envs_per_worker, 1.0, 0.5)

    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr(components, "inference", inference)
    monkeypatch.setattr(components, "rollout", rollout)
    learned = [components.Learning("float32", 100.0)]
    monkeypatch.setattr(components, "learner", lambda *_: learned)
    config, spec = defaults.defaults_for("CartPole-v1"), envs.describe("CartPole-v1")
    tuner._measure_environments(config, spec, [8, 2], Start("environments"), True)
    tuner._measure_networks(config, spec, Start("networks"), True, 2.0)
    assert waits == {"environments": 2, "networks": 2}


@pytest.mark.parametrize(
    ("exact_us", "in_question"),
    [(16.0, ["bfloat16"]), (14.0, ["float32", "bfloat16"]), (6.0, ["float32"])],
)
def test_learning_is_timed_in_the_precisions_that_acting_leaves_open(exact_us, in_question):
    acting = [
        components.Inference(precision, size, size * us, 0.0)
        for precision, us in (("float32", exact_us), ("bfloat16", 10.0))
        for size in (8, 32, 64)
    ]
    acting[0] = acting[0]._replace(batch_us=1.0)  # of few rows, in which much is not the network
    assert tuner._in_question(acting) == in_question


def test_made_up_images_change_as_little_as_those_of_a_game(make_shared):
    """What learning costs depends on it where changes alone are multiplied."""
    shared = make_shared(
        env="Pong",
        serial=True,
        num_workers=1,
        num_splits=1,
        envs_per_worker=2,
        rollout_length=8,
        batch_size=16,
        minibatches=1,
        model="nature_cnn",
    )
    components._fill(shared)
    rows = shared.buffer.obs["obs"]  # [S, T+1, N, C, H, W]
    changes = rows[:, 1:] != rows[:, :-1]
    assert 0.005 < changes.mean() < 0.025
    assert changes.any((3, 4, 5)).all()
    assert len(np.unique(rows[:, 0])) == 256


def test_acting_is_timed_on_images_that_change(make_shared, monkeypatch):
    """Those that stay cost less where changes alone are multiplied; and so do weights that stay."""
    shared = make_shared(
        env="Pong",
        num_workers=1,
        num_splits=1,
        envs_per_worker=2,
        rollout_length=4,
        batch_size=8,
        minibatches=1,
        model="nature_cnn",
    )
    shared.weights.publish(make_algorithm(shared.config, shared.env).make_model(), version=3)
    [worker] = workers = [components.make_policy_worker(shared, 0)]
    monkeypatch.setattr(components, "make_policy_worker", lambda *_: workers.pop())
    step = components._inference_step(shared)
    for renewals in (2, 3):  # the first weights are new ones, too
        step()
        assert worker.environments.renewals == renewals
    [acted] = {
        slot for slot in range(shared.buffer.num_slots) if shared.buffer.policy_version[slot].any()
    }
    assert (shared.buffer.policy_version[acted][:4] == 3).all()


def test_the_precision_in_which_acting_and_learning_together_take_less_time_is_taken():
    rounded = PONG._replace(precision="bfloat16", learn_us=100.0, batch_us=320.0, row_us=30.0)
    for exact_us, row_us, is_better in ((95.0, 30.0, False), (95.0, 40.0, True), (105, 30.0, True)):
        exact = rounded._replace(precision="float32", learn_us=exact_us, row_us=row_us)
        assert (tuner._network_us(rounded) < tuner._network_us(exact)) == is_better


# --- what may change ---

MAY_CHANGE = {
    *("num_workers", "num_splits", "envs_per_worker", "num_policy_workers", "torch_threads"),
    "minibatches",
}


@pytest.mark.parametrize("env", ["Pong", "CartPole-v1"])
@pytest.mark.parametrize("cores", [1, 1.5, 2, 16])
def test_arrangements_leave_each_optimizer_step_alone_and_bound_the_environments(env, cores):
    config = defaults.defaults_for(env)
    found = tuner.arrangements(config, (), cores)
    assert len(found) >= 2
    for candidate in found:
        differing = {
            name
            for name, value in dataclasses.asdict(candidate).items()
            if value != getattr(config, name)
        }
        assert differing <= MAY_CHANGE
        assert candidate.batch_size == 256
        num_envs = candidate.num_workers * candidate.envs_per_worker
        in_batch = candidate.slots_per_batch * candidate.envs_per_split
        assert in_batch == min(num_envs, 32)
        assert 16 <= num_envs <= 8 * 32
        assert candidate.num_workers <= cores + 0.5


def test_the_rule_of_batches_is_that_of_the_defaults():
    """What the tuner makes of a number of workers is what the same flags make of it."""
    names = ("num_workers", "num_splits", "envs_per_worker")
    for env in ("Pong", "CartPole-v1"):
        spec = envs.describe(env)
        found = tuner.arrangements(defaults.defaults_for(env, spec=spec), (), 16)
        sizes = {tuple(getattr(c, name) for name in names): c.minibatches for c in found}
        assert len(sizes) > 50
        for values, minibatches in sizes.items():
            same = defaults.defaults_for(env, dict(zip(names, values, strict=True)), spec)
            assert (same.batch_size, same.minibatches) == (256, minibatches)


def test_a_batch_of_the_users_stays():
    config = dataclasses.replace(defaults.defaults_for("Pong", {"num_workers": 2}), batch_size=128)
    found = tuner.arrangements(config, ["batch_size"], 2)
    assert {(c.batch_size, c.minibatches) for c in found} == {(128, config.minibatches)}
    for candidate in found:
        assert 4 * 128 <= candidate.num_workers * candidate.envs_per_worker * 32 <= 8 * 4 * 128


def test_environments_are_as_many_as_the_frames_that_they_cost_are_worth():
    """16 cores: a GPU that waits for environments gets more of them than a learner on the CPU."""
    config = defaults.defaults_for("Pong", {"num_workers": 15})
    num_envs = {}
    for name, costs in {
        "gpu": PONG._replace(batch_us=300.0, row_us=1.0, learn_us=15.0, on_gpu=True),
        "cpu": PONG,
    }.items():
        chosen = tuner.choose(tuner.arrangements(config, (), 16), costs, 16)
        num_envs[name] = chosen.num_workers * chosen.envs_per_worker
        assert chosen.num_workers == 16
    assert num_envs["cpu"] == 32 < num_envs["gpu"] < 256


@pytest.mark.parametrize("flag", ["num_workers=1", "num_splits=4", "envs_per_worker=32"])
def test_a_flag_is_respected(flag, monkeypatch):
    monkeypatch.setattr(tuner, "usable_cores", lambda: 2.0)
    name, value = flag.split("=")
    config = cli.parse(["--env=CartPole-v1", "--run-dir=x", f"--{flag}"])
    in_cache(config, PONG)
    assert getattr(tuner.tune(config, (), envs.describe(config.env)), name) != int(value)
    assert getattr(tuner.tune(config, [name], envs.describe(config.env)), name) == int(value)


def test_where_environments_wait_the_splits_stay():
    config = defaults.defaults_for("CartPole-v1", {"threads_per_worker": 16})
    config = dataclasses.replace(config, threads_per_worker=16)
    candidates = tuner.arrangements(config, ["threads_per_worker"], 2)
    assert len(candidates) > 1
    assert {candidate.num_splits for candidate in candidates} == {4}


def test_the_groups_memory_limit_counts_as_less_memory(tmp_path):
    own, groups = tmp_path / "own", tmp_path / "groups"
    (groups / "a").mkdir(parents=True)
    own.write_text("0::/a\n")
    (groups / "a/memory.max").write_text("max\n")
    (groups / "a/memory.current").write_text("1000\n")
    assert machine.available_memory(own, groups) > 10**6
    (groups / "a/memory.max").write_text("3000\n")
    assert machine.available_memory(own, groups) == 2000
    (groups / "a/memory.stat").write_text("anon 100\ninactive_file 400\nactive_file 5\n")
    assert machine.available_memory(own, groups) == 2400  # files' cache is given up when needed
    own.write_text("7:memory:/a\n")
    (groups / "memory/a").mkdir(parents=True)
    (groups / "memory/a/memory.limit_in_bytes").write_text("5000\n")
    (groups / "memory/a/memory.usage_in_bytes").write_text("4000\n")
    (groups / "memory/a/memory.stat").write_text("total_inactive_file 500\n")
    assert machine.available_memory(own, groups) == 1500


def test_the_processes_that_a_control_group_allows_are_respected(tmp_path):
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("0::/outer/inner\n")
    inner = groups / "outer" / "inner"
    inner.mkdir(parents=True)
    assert machine.available_processes(own, groups) == math.inf
    (inner / "pids.max").write_text("max\n")
    (inner / "pids.current").write_text("4\n")
    assert machine.available_processes(own, groups) == math.inf
    (inner.parent / "pids.max").write_text("100\n")
    (inner.parent / "pids.current").write_text("40\n")
    assert machine.available_processes(own, groups) == 60


def test_a_quota_of_the_groups_counts_as_fewer_cores(tmp_path):
    own, groups = tmp_path / "own", tmp_path / "groups"
    (groups / "a/b").mkdir(parents=True)
    own.write_text("4:memory:/m\n3:cpu,cpuacct:/docker/x\n0::/a/b\n")
    (groups / "a/b/cpu.max").write_text("max 100000\n")
    without = tuner.usable_cores(own, groups)
    (groups / "a/cpu.max").write_text("50000 100000\n")
    assert (without, tuner.usable_cores(own, groups)) == (len(os.sched_getaffinity(0)), 0.5)
    (groups / "cpu").mkdir()  # of version 1, seen from inside a container
    (groups / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (groups / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert tuner.usable_cores(own, groups) == 0.5
    (groups / "cpu/cpu.cfs_quota_us").write_text("25000\n")
    assert tuner.usable_cores(own, groups) == 0.25


# --- the cache ---


def test_what_is_cached_is_not_measured(capsys, monkeypatch):
    monkeypatch.setattr(tuner, "usable_cores", lambda: 2.0)
    config = cli.parse(["--env=CartPole-v1", "--run-dir=x"])
    in_cache(config, PONG)  # no CartPole is as slow
    tuned = tuner.tune(config, (), envs.describe(config.env))
    assert "44% environments" in tuned.tuned
    assert tuned.precision == "bfloat16"
    assert capsys.readouterr().err == "", "the run's log has it"


def test_the_benchmark_measures_what_train_py_would_run(monkeypatch):
    monkeypatch.setattr(tuner, "usable_cores", lambda: 2.0)
    config = cli.parse(["--env=CartPole-v1", "--run-dir=x"])
    in_cache(config, PONG)
    _, tuned, _ = bench._read(["training", "--env=CartPole-v1"], "sfrl bench")
    assert "44% environments" in tuned.tuned
    assert (tuned.num_workers, tuned.envs_per_worker) == (2, 16)
    _, untuned, _ = bench._read(["training", "--env=CartPole-v1", "--tune=off"], "sfrl bench")
    assert untuned.envs_per_worker == 16


def test_the_key_holds_what_costs_depend_on_and_nothing_else(monkeypatch):
    config = ActorCriticConfig()
    keys = {
        tuner.cache_key(config, 2),
        tuner.cache_key(config, 3),
        *(
            tuner.cache_key(dataclasses.replace(config, **change), 2)
            for change in (
                {"env": "Breakout"},
                {"model": "impala_resnet"},
                {"rnn": "gru", "rnn_size": 64},
                {"rollout_length": 64},
                {"batch_size": 512},
                {"minibatches": 2},
                {"epochs": 1},
                {"loss": "vtrace"},
                {"correction": "decoupled"},
                {"precision": "float32"},
            )
        ),
    }
    assert len(keys) == 12
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert tuner.cache_key(config, 2) not in keys
    monkeypatch.undo()
    same = dataclasses.replace(config, seed=2, num_splits=1, learning_rate=0.1, run_dir="x")
    assert tuner.cache_key(same, 2) in keys


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"k": 1}',
        '{"k": {"env_us": 1.0}}',
        "unknown setting",
        "zero",
        "nan",
        "huge",
        "bool",
        "text",
    ],
)
def test_a_broken_cache_is_ignored_with_a_warning(text, capsys):
    in_cache(ActorCriticConfig(), PONG)
    assert not capsys.readouterr().err
    values = {"zero": 0.0, "nan": math.nan, "huge": 10**400, "bool": True}
    values |= {"text": "x", "unknown setting": 1.0}
    if text in values:
        name = "more" if text == "unknown setting" else "env_us"
        text = json.dumps({"k": {**PONG._asdict(), name: values[text]}})
    tuner.cache_path().write_text(text)
    assert tuner.read_cache() == {}
    assert "tuning.json cannot be read and will be replaced" in capsys.readouterr().err


# --- the start ---


@pytest.mark.parametrize("cores", [1.0, 3.0])
def test_costs_are_measured_on_one_core_in_turn_and_on_more_at_once(cores, monkeypatch):
    started = []

    def in_children(bodies):
        started.append(len(bodies))
        return measured(bodies)

    measured = tuner.children.in_children
    monkeypatch.setattr(tuner.children, "in_children", in_children)
    spec = envs.describe("CartPole-v1")
    config = defaults.resolve(defaults.defaults_for("CartPole-v1", spec=spec), spec)
    costs = tuner.measure_costs(config, spec, cores)
    assert costs.problem() is None
    assert (costs.precision, costs.on_gpu) == ("float32", False)
    assert 1 < costs.env_us < 1000
    assert costs.row_us < costs.learn_us
    assert started == ([1, 1] if cores == 1 else [3])


@pytest.mark.parametrize(
    ("given", "measured"),
    [
        ({}, ([8, 2], 14)),
        ({"num_workers": 3}, ([8, 2], 3)),
        ({"num_workers": 1, "envs_per_worker": 1}, ([1], 1)),
        ({"envs_per_worker": 5}, ([5, 2], 14)),
        ({"envs_per_worker": 2}, ([2, 1], 14)),
    ],
)
def test_no_more_environments_are_made_than_flags_allow(given, measured):
    given = {"num_splits": 1, **given}
    config = defaults.defaults_for("CartPole-v1", given)
    config = dataclasses.replace(config, **given)
    assert tuner._measured_environments(config, given, 16) == measured
    is_usual = tuner.cache_key(config, 16, given) == tuner.cache_key(config, 16)
    assert is_usual == (measured == ([8, 2], 14))


def test_a_single_size_is_a_line_through_the_origin():
    assert tuner._line([4], [20.0]) == (5.0, 0.01)


def test_a_machine_is_not_measured_where_flags_leave_nothing_to_choose(monkeypatch):
    monkeypatch.setattr(tuner, "measure_costs", None)
    spec = envs.describe("CartPole-v1")
    config = defaults.defaults_for("CartPole-v1", spec=spec)
    tuned = tuner.tune(config, tuner._ARRANGED, spec)
    assert tuned == dataclasses.replace(config, tuned=tuned.tuned)
    assert tuned.tuned.startswith("not tuned: flags say how many processes")


def lacks_shared_memory():
    raise ShortageError("it needs 65 MiB of shared memory")


def test_a_shortage_is_told_in_a_line_and_not_by_a_traceback(capfd):
    with pytest.raises(measuring.MeasureError, match="it needs 65 MiB of shared memory"):
        measuring.in_child(lacks_shared_memory)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("then", ["raises", "hangs"])
def test_programs_of_measured_environments_do_not_outlive_it(then, tmp_path):
    """As those of a simulator's environments, whose constructor starts one."""
    name = str(tmp_path / "started")
    with pytest.raises(measuring.MeasureError), measuring.time_limit(20 if then == "raises" else 8):
        measuring.in_child(starts_a_program, name, then)
    assert Path(name).exists()
    found = [p.info for p in psutil.process_iter(["cmdline", "status"])]
    found = [info for info in found if name in (info["cmdline"] or ())]
    assert [info for info in found if info["status"] != psutil.STATUS_ZOMBIE] == []


def starts_a_program(name, then):
    code = "import time; print(flush=True); time.sleep(100)"
    program = subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE)
    program.stdout.readline()  # it runs
    Path(name).touch()
    if then == "raises":
        raise RuntimeError("no licence")
    time.sleep(100)


def test_train_py_measures_replaces_a_broken_cache_and_saves_what_it_decided(tmp_path):
    tuner.cache_path().parent.mkdir(parents=True)
    tuner.cache_path().write_text("{")
    ended = run_training(tmp_path / "run", "--env=CartPole-v1", "--tune=now", "--train-frames=3000")
    assert ended.code == 0, ended.stderr
    saved = load_config(tmp_path / "run/config.json")
    assert saved.tuned.startswith("tuned for ")
    logged = [line[24:] for line in (tmp_path / "run/log.txt").read_text().splitlines()]
    at = logged.index(saved.tuned.partition("; ")[0])
    assert "; ".join(logged[at:]).startswith(saved.tuned)
    assert "\n".join(saved.tuned.split("; ")) in ended.stderr
    assert "sfrl: tuned" not in ended.stderr, "which looks like an error"
    assert "will be replaced" in ended.stderr
    assert saved.precision == "float32"  # its observations are no pixels
    [costs] = tuner.read_cache().values()
    assert costs.precision == saved.precision
    assert [path.name for path in tuner.cache_path().parent.iterdir()] == ["tuning.json"]


def test_an_environment_that_breaks_leaves_the_defaults_and_is_told_of(capfd):
    env = "tests.faulty_env:Raises-v0"
    config = cli.parse([f"--env={env}", "--run-dir=x", "--tune=now"])
    untuned = tuner.tune(config, (), envs.describe(config.env))
    assert untuned == dataclasses.replace(config, tuned=untuned.tuned)
    told = "not tuned, the defaults stay, as with --tune=off: a measuring process exited with 1"
    assert untuned.tuned.startswith(told)
    assert "the pole broke" in capfd.readouterr().err
    assert not tuner.cache_path().exists()


def closes_its_files():
    os.closerange(3, 1024)
    time.sleep(60)


def test_an_environment_that_closes_all_files_is_waited_for_no_longer_than_others():
    began_s = time.monotonic()
    with pytest.raises(measuring.MeasureError, match="a measuring process closed its files"):
        measuring.in_child(closes_its_files)
    assert time.monotonic() - began_s < 20


def test_ctrl_c_while_measuring_ends_at_once_and_quietly(tmp_path):
    with training(tmp_path / "run", "--env=CartPole-v1", "--tune=now") as process:
        wait_for(lambda: any(segments(child.pid) for child in children(process.pid)))
        interrupt(process)
        ended = finish(process)
    assert (ended.code, ended.stdout) == (0, "")
    assert "Traceback" not in ended.stderr
    assert ended.seconds < 3
    assert not (tmp_path / "run").exists()
