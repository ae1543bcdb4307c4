"""A3C's processes, each of which plays, acts and learns: whoever dies, the others go on."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sfrl.ipc.messages import CheckpointRequest
from sfrl.records import checkpoint
from sfrl.records.metrics import RunMetrics
from sfrl.run import restarts
from sfrl.run.process_crew import ProcessCrew
from sfrl.settle import settle
from tests.runs import children, finish, interrupt, metrics, run_training, training, wait_for

FLAGS = ("--env=CartPole-v1", "--system=a3c", "--tune=off", "--num-workers=3")


def bundles(pid):
    return [p for p in children(pid) if " ".join(p.cmdline()).startswith("sfrl rollout-")]


@pytest.mark.kills
def test_thirty_kills_of_processes_that_learn_lose_nothing_but_their_unrolls(
    make_shared, monkeypatch
):
    monkeypatch.setattr(restarts, "STEADY_S", 0.0)  # each restart at once
    rng = random.Random(2)
    config, _ = settle({"env": "CartPole-v1", "system": "a3c", "num_workers": 3, "tune": "off"})
    own = vars(replace(config, max_worker_restarts=100, frameskip=1))
    shared = make_shared(**{name: value for name, value in own.items() if name != "run_dir"})
    progress, crew = shared.progress, ProcessCrew(shared)
    crew.start(None)
    seen = [(0, 0)]

    def advance_until(is_done):
        deadline_s = time.monotonic() + 90
        while not is_done():
            crew.advance()
            crew.take_reports()
            seen.append((progress.learner_steps, progress.total_env_steps))
            assert time.monotonic() < deadline_s

    def learned(number):
        steps = progress.learner_steps
        return lambda: progress.learner_steps > steps + number

    try:
        advance_until(learned(50))
        for number in range(30):
            advance_until(lambda: crew.pids)
            os.kill(rng.choice([*crew.pids.values()]), signal.SIGKILL)
            end_s = time.monotonic() + rng.uniform(0, 0.5)
            advance_until(lambda end_s=end_s: time.monotonic() > end_s)
            if number % 3 == 0:
                advance_until(learned(50))
        advance_until(lambda: len(crew.pids) == 3)
        advance_until(learned(50))
        assert progress.restarts.sum() == 30
        assert seen == sorted(seen, key=lambda counts: counts[0])
        assert seen == sorted(seen, key=lambda counts: counts[1])
        # Of each that died no more than the unroll at hand.
        unroll = config.rollout_length * config.envs_per_worker
        assert 0 < progress.discarded_steps(shared.buffer.is_filled) <= 30 * unroll
        (Path(shared.config.run_dir) / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert crew.request_checkpoint(
            CheckpointRequest(RunMetrics(start_s=0.0, statistics=()).state(), None, is_last=True)
        )
    finally:
        failures = crew.stop(10)
    assert failures == []
    saved = checkpoint.load(next(iter(checkpoint.latest_paths(shared.config.run_dir))))
    assert saved["counters"]["learner_steps"] >= seen[-1][0]


def test_a3c_saves_resumes_and_is_replaced_without_its_first_process(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *FLAGS, "--report-seconds=0.5") as process:
        wait_for(lambda: metrics(run_dir) and metrics(run_dir)[-1]["learner_steps"] > 50)
        first = next(p for p in bundles(process.pid) if "rollout-0" in " ".join(p.cmdline()))
        first.send_signal(signal.SIGSTOP)  # whose learner does not answer
        steps = metrics(run_dir)[-1]["learner_steps"]
        wait_for(lambda: metrics(run_dir)[-1]["learner_steps"] > steps + 50)
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGKILL)
        interrupt(process, signal.SIGINT)  # the others write the last checkpoint
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    before = metrics(run_dir)[-1]
    config = json.loads((run_dir / "config.json").read_text())
    assert config["system"] == "a3c"
    # An unroll is a step. As frames, not as seconds: a busy machine starts late.
    unroll = config["rollout_length"] * config["envs_per_worker"]
    frames = before["env_frames"] + 60 * unroll
    later = run_training(None, "--resume", f"--run-dir={run_dir}", f"--train-frames={frames}")
    assert later.code == 0, later.stderr
    after = metrics(run_dir)[-1]
    assert after["learner_steps"] > before["learner_steps"] + 50
    assert after["env_steps"] > before["env_steps"]


def test_a3c_in_one_thread_repeats_itself_to_the_bit(tmp_path):
    weights = []
    for name in ("first", "second"):
        flags = (*FLAGS, "--serial", "--seed=3", "--train-frames=3000")
        ended = run_training(tmp_path / name, *flags)
        assert ended.code == 0, ended.stderr
        weights.append(
            checkpoint.load(next(iter(checkpoint.latest_paths(tmp_path / name))))["model"]
        )
    first, second = weights
    assert all((first[name] == second[name]).all() for name in first)
