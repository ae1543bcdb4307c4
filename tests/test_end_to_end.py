"""Whole runs: the same seed in one thread, and train.py on Pong, stopped and resumed."""

import copy
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from sfrl.commands import enjoy
from sfrl.envs.gymnasium_envs import GymnasiumVecEnv
from sfrl.records import checkpoint, memory_file
from sfrl.run.crew import WorkerError
from sfrl.run.serial_crew import SerialCrew
from sfrl.run.trainer import Summary, Trainer
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import load_starts, make_config
from sfrl.settings.config import Config
from sfrl.workers.learner import ROOT_FRAMES, Learner
from tests.runs import (
    TINY,
    components,
    finish,
    has_trained,
    interrupt,
    metrics,
    run_training,
    training,
    wait_for,
)

CATCH = {
    "env": "tests.tiny_envs:Catch-v0",
    "frameskip": 1,
    "model": "mlp",
    "num_workers": 2,
    "num_policy_workers": 2,
    "envs_per_worker": 8,
    "rollout_length": 8,
    "batch_size": 64,
    "minibatches": 2,
    "train_frames": 4000,
}
GUESS = {**CATCH, "env": "tests.tiny_envs:Guess-v0", "train_frames": 1000}
PONG = {
    "env": "Pong",
    "model": "nature_cnn",
    "num_workers": 1,
    "envs_per_worker": 4,
    "rollout_length": 8,
    "batch_size": 32,
    "minibatches": 1,
    "train_frames": 2000,
}
PONG_BY_DEFAULT = {
    **PONG,
    "model": "pooled_cnn",
    "optimizer": "muon",
    "lr_schedule": "root",
    "episodic_life": True,
}


def train_serially(run_dir, seed: int, **settings) -> tuple[Summary, dict]:
    """A run in this thread: how it ended, and its last checkpoint."""
    serial = {"serial": True, "seed": seed, "run_dir": str(run_dir), "precision": "float32"}
    config = make_config(serial | settings)
    summary = Trainer(config).run()
    return summary, checkpoint.load_latest(run_dir).state


@pytest.mark.parametrize(
    "settings",
    [
        CATCH,
        {**CATCH, "rnn": "gru", "rnn_size": 8},
        {**CATCH, "system": "n-step-q"},
        GUESS,
        PONG,
        PONG_BY_DEFAULT,
    ],
    ids=[
        "Catch",
        "Catch with a GRU",
        "Catch by Q",
        "an environment that draws from its spaces",
        "Pong",
        "Pong by default",
    ],
)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path, settings):
    summary, first = train_serially(tmp_path / "1", seed=5, **settings)
    _, again = train_serially(tmp_path / "2", seed=5, **settings)
    _, other = train_serially(tmp_path / "3", seed=6, **settings)
    assert first["counters"]["learner_steps"] >= 8
    assert first["counters"] == again["counters"]
    assert summary.env_frames == first["counters"]["env_frames"] >= settings["train_frames"]
    weights, others = first["model"], other["model"]
    assert all(weights[name].equal(again["model"][name]) for name in weights)
    assert not any(weights[name].equal(others[name]) for name in weights)


def interrupted(config: Config, monkeypatch, rounds: int) -> Config:
    """Run until so many rounds have passed, or to the end; how to go on."""
    signals: list[int] = []
    advance = SerialCrew.advance
    num_rounds = 0

    def advance_and_count(crew: SerialCrew) -> None:
        nonlocal num_rounds
        advance(crew)
        num_rounds += 1
        if num_rounds == rounds:
            signals.append(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SerialCrew, "advance", advance_and_count)
        Trainer(config, signals).run()
    return dataclasses.replace(config, resume=True)


POINTER = {
    "env": "tests.tiny_envs:Pointer-v0",
    "system": "sac",
    "frameskip": 1,
    "model": "flat",
    "num_workers": 2,
    "batch_size": 16,
    "replay_size": 300,  # less than there are decisions
    "learning_starts": 40,
    "updates_per_decision": 0.3,
    "n_step": 2,
    "train_frames": 400,
}
SEEN_LAST = {"observe_last": True, "normalize_obs": True}  # which are vectors beside the image
STICKY_PONG = {
    **PONG,
    "sticky_actions": 0.25,
    "num_workers": 2,
    "envs_per_worker": 2,  # each of these runs loads as many emulators five times
    "num_splits": 2,
}
DQN_PONG = {
    **STICKY_PONG,
    "system": "dqn",
    "envs_per_worker": 4,
    "replay_size": 600,  # with stacks of frames
    "learning_starts": 40,
    "updates_per_decision": 0.05,
    "target_every": 5,
    "epsilon_frames": 1000,
    "train_frames": 1400,
}


@pytest.mark.parametrize(
    "settings",
    [
        PONG,
        PONG_BY_DEFAULT,
        {**STICKY_PONG, "rnn": "gru", "rnn_size": 8},
        {**PONG, "rnn": "lstm", "rnn_size": 4, "rnn_layers": 2, **SEEN_LAST},
        {**STICKY_PONG, "system": "n-step-q", "target_every": 3, "epsilon_frames": 8000},
        # Acts with older weights until an unroll ends.
        {**STICKY_PONG, "num_splits": 1, "system": "impala"},
        {**PONG, "system": "a3c"},  # whose policy acts with the learner's own weights
        POINTER,
        DQN_PONG,
    ],
)
def test_a_serial_run_may_be_interrupted_anywhere_and_ends_the_same(
    tmp_path, monkeypatch, settings
):
    """Bit for bit: weights, optimizer, random numbers, and the workers with all they hold."""
    if settings is POINTER:
        let_environments_tell_their_state(monkeypatch)
    settings = {**settings, "serial": True, "precision": "float32"}
    Trainer(make_config({"run_dir": str(tmp_path / "1"), **settings})).run()
    whole = checkpoint.load_latest(tmp_path / "1").state
    config = make_config({"run_dir": str(tmp_path / "2"), **settings})
    for rounds in (25, 2, 39, 10_000):
        config = interrupted(config, monkeypatch, rounds)
    resumed = checkpoint.load_latest(tmp_path / "2").state
    assert whole["counters"] == resumed["counters"]
    assert whole["counters"]["learner_steps"] >= 8
    assert ("target" in whole) == ("target_every" in settings)
    for key in {"model", "target", "optimizer", "rng", "workers"} & whole.keys():
        assert_same(whole[key], resumed[key], key)
    memories = [memory_file.path_in(tmp_path / run) for run in "12"]
    assert [path.exists() for path in memories] == ["replay_size" in settings] * 2
    if memories[0].exists():
        first, second = (dict(np.load(path)) for path in memories)
        assert len(first["row rewards/0"]) > 0
        assert_same(checkpoint.tensors_of(first), checkpoint.tensors_of(second), "memory")


def test_without_its_memory_a_serial_runs_environments_start_again(tmp_path, monkeypatch, caplog):
    """After a kill. The rows to come would go on from some that are not there."""
    settings = {**DQN_PONG, "serial": True, "precision": "float32", "run_dir": str(tmp_path)}
    config = interrupted(make_config(settings), monkeypatch, 25)
    memory_file.path_in(tmp_path).unlink()
    Trainer(config).run()
    assert "no memory was written, as after a kill; it is filled again" in caplog.text
    assert "environments belong to a memory that is not there; they start again" in caplog.text
    assert checkpoint.load_latest(tmp_path).state["counters"]["env_frames"] >= 1400


def let_environments_tell_their_state(monkeypatch) -> None:
    """Gymnasium's cannot. Here all starts of a run are in this process, which keeps copies."""
    kept: dict[int, dict] = {}
    names = ("_envs", "_seeds", "_ended", "_last_obs", "_actions", "_infos", "_num_steps")

    def state(env: GymnasiumVecEnv) -> dict:
        """The number of its steps, which names the copy as well."""
        key = hash((env._seeds[0], env._num_steps))
        kept[key] = copy.deepcopy({name: getattr(env, name) for name in names})
        return {"key": key, "num_steps": env._num_steps}

    def load_state(env: GymnasiumVecEnv, saved: dict) -> None:
        env.__dict__.update(copy.deepcopy(kept[saved["key"]]))

    monkeypatch.setattr(GymnasiumVecEnv, "state", state)
    monkeypatch.setattr(GymnasiumVecEnv, "load_state", load_state)


@pytest.mark.parametrize("fault", ["other settings", "in a round"])
def test_what_cannot_go_on_exactly_leaves_its_checkpoint_alone(tmp_path, monkeypatch, fault):
    config = ActorCriticConfig(serial=True, precision="float32", run_dir=str(tmp_path), **PONG)
    config = interrupted(config, monkeypatch, 25)
    before = checkpoint.load_latest(tmp_path)
    content, settings = before.path.read_bytes(), (tmp_path / "config.json").read_bytes()
    if fault == "other settings":
        other = dataclasses.replace(config, num_workers=2)
        with pytest.raises(checkpoint.CheckpointError, match="the workers of a run with other"):
            Trainer(other).run()
        assert before.path.read_bytes() == content
        assert (tmp_path / "config.json").read_bytes() == settings
        assert checkpoint.load_latest(tmp_path).path == before.path
    else:
        monkeypatch.setattr(Learner, "_update_on_chosen", _fail)
        with pytest.raises(WorkerError, match="ArithmeticError: in the middle of a round"):
            Trainer(config).run()
        assert checkpoint.load_latest(tmp_path).state["workers"] is None  # a half round
    monkeypatch.undo()
    Trainer(config).run()
    assert checkpoint.load_latest(tmp_path).state["counters"]["env_frames"] >= 2000


def _fail(*_: object) -> None:
    raise ArithmeticError("in the middle of a round")


def assert_same(first: object, second: object, place: str) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{place}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert first.equal(second), place
    else:
        assert first == second, place


def test_in_a_serial_run_nobody_counts_the_others_time(tmp_path):
    """What comes first in a worker's turn had the time of all turns before."""
    config = ActorCriticConfig(serial=True, precision="float32", run_dir=str(tmp_path), **GUESS)
    Trainer(config).run()
    record = metrics(tmp_path)[-1]
    assert record["policy/refresh_weights"] < record["policy/forward"]
    assert record["rollout/working"] == 1


def test_a_serial_run_whose_environments_cannot_be_saved_starts_them_anew_and_says_so(
    tmp_path, monkeypatch, caplog
):
    """The seed and the decisions so far decide which: a copy of the run goes on in the same way."""
    config = ActorCriticConfig(
        serial=True, precision="float32", run_dir=str(tmp_path / "1"), **GUESS
    )
    config = interrupted(config, monkeypatch, 50)
    copy = dataclasses.replace(config, run_dir=str(tmp_path / "2"))
    shutil.copytree(config.run_dir, copy.run_dir)
    Trainer(config).run()
    assert "environments could not be saved; they start again, from other seeds" in caplog.text
    Trainer(copy).run()
    first, again = (checkpoint.load_latest(c.run_dir).state["model"] for c in (config, copy))
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3", "4", "4-one-class", "4-gru"])
def test_a_run_of_this_checkpoint_format_is_played_and_goes_on(tmp_path, version, capsys):
    """Files written when the format was new: whoever changes it keeps a way to read them.

    gru: of --serial, with rnn_size alone, from when all memories were GRUs.
    one-class: all settings are of one class, and threads_per_worker=2 is among them.
    """
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    data = Path(__file__).parent / "data"
    shutil.copy(data / f"config-{version}.json", run_dir / "config.json")
    path = run_dir / "checkpoints" / "latest-000000004000.pt"
    shutil.copy(data / f"checkpoint-{version}.pt", path)
    assert enjoy.main([f"--checkpoint={path}", "--episodes=1"], "enjoy.py") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["episode_return_mean"] >= 8
    before = checkpoint.load_latest(run_dir).state["counters"]
    flags = (f"--run-dir={run_dir}", "--resume", "--train-frames=20000", "--lr-schedule=constant")
    ended = run_training(None, *flags)
    assert ended.code == 0, ended.stderr
    after = checkpoint.load_latest(run_dir).state["counters"]
    assert after["env_frames"] >= 20_000 > before["env_frames"]
    assert after["learner_steps"] > before["learner_steps"] > 0
    [start] = load_starts(run_dir / "config.json")
    assert start["env_frames"] == before["env_frames"]


TINY_PONG = (
    "--env=Pong",
    "--num-workers=1",
    "--num-splits=2",
    "--envs-per-worker=8",
    "--rollout-length=8",
    "--batch-size=32",
    "--minibatches=2",
    "--epochs=1",
    "--learning-rate=0.001",
    "--report-seconds=0.3",
    "--max-episode-frames=200",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "flags"),
    [
        ("Breakout", ["--model=tests.tiny_encoder:Tiny"]),
        ("MsPacman", ["--num-policy-workers=2", "--worker-nice=7", "--pin-workers"]),
    ],
)
def test_train_py_trains_on_other_games_with_other_settings(tmp_path, game, flags):
    run_dir = tmp_path / game
    with training(run_dir, f"--env={game}", *TINY_PONG[1:], *flags) as process:
        wait_for(lambda: has_trained(run_dir) or process.poll() is not None)
        assert process.poll() is None, finish(process).stderr
        worker = components(process.pid)["rollout-0"]
        niceness, cores = worker.nice(), worker.cpu_affinity()
        interrupt(process)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert ended.summary["env_frames"] > 0
    is_set = "--pin-workers" in flags
    assert niceness == os.nice(0) + (7 if is_set else 5)
    assert (len(cores) == 1) == (is_set or os.cpu_count() == 1)


def test_train_py_trains_on_pong_and_goes_on_where_it_stopped(tmp_path):
    run_dir = tmp_path / "pong"
    ended = run_training(run_dir, *TINY_PONG, "--train-frames=2400")
    assert ended.code == 0, ended.stderr
    first, records = ended.summary, metrics(run_dir)
    assert first["env_frames"] == 4 * first["env_steps"] >= 2400
    assert first["episodes"] > 0
    assert -21 <= first["episode_return_mean"] <= 21
    assert first["run_dir"] == str(run_dir)
    last = records[-1]
    assert last["learner_steps"] >= 8
    for name in ("policy_loss", "value_loss", "entropy", "grad_norm", "policy_lag_mean"):
        assert math.isfinite(_newest(records, name)), name
    assert _newest(records, "entropy") < math.log(6)

    stopped = checkpoint.load_latest(run_dir).state
    stopped_frames = stopped["counters"]["env_frames"]
    ended = run_training(run_dir, "--resume", "--train-frames=4800")
    assert ended.code == 0, ended.stderr
    second, all_records = ended.summary, metrics(run_dir)
    kept = [record for record in records if record["env_frames"] <= stopped_frames]
    resumed = all_records[len(kept) :]
    assert all_records[: len(kept)] == kept
    assert second["env_frames"] >= 4800
    assert second["episodes"] > stopped["metrics"]["episodes"]
    for name in ("env_frames", "env_steps", "learner_steps"):
        values = [record[name] for record in all_records]
        assert values == sorted(values), name
    for name in ("time_s", "episodes"):
        assert resumed[0][name] >= stopped["metrics"][name] > 0
    assert resumed[0]["learner_steps"] >= stopped["counters"]["learner_steps"] >= 8
    # The schedule goes on from the frames that the first start had reached.
    rates = [record["learning_rate"] for record in resumed if record["learning_rate"] is not None]
    assert 0 < max(rates) <= 0.001 / math.sqrt(1 + stopped_frames / ROOT_FRAMES)
    assert all(before >= after for before, after in itertools.pairwise(rates))
    last = checkpoint.load_latest(run_dir).state
    assert last["counters"]["learner_steps"] == all_records[-1]["learner_steps"]
    starts = load_starts(run_dir / "config.json")
    assert [start["env_frames"] for start in starts] == [0, stopped_frames]
    assert [start["command"].endswith("--train-frames=4800") for start in starts] == [False, True]


def _newest(records: list[dict], name: str) -> float:
    return next(r[name] for r in reversed(records) if r[name] is not None)


def test_assumptions_are_told_at_start_and_numbers_in_info_become_metrics(tmp_path):
    flags = ("--env=tests.tiny_envs:Planes-v0", "--train-frames=3000", "--lr-schedule=constant")
    ended = run_training(tmp_path, *TINY[1:], *flags)
    assert ended.code == 0, ended.stderr
    told = "observations (10, 5, 7) of bool are read as 7 channels of 10x5 pixels"
    assert told in ended.stderr
    assert told in (tmp_path / "log.txt").read_text()
    last = metrics(tmp_path)[-1]
    assert last["info/is_success"] == pytest.approx((last["episode_return_mean"] + 1) / 2)
    assert "info/note" not in last


@pytest.mark.parametrize(("system", "is_late"), [("appo", True), ("a2c-sync", False)])
def test_synchronous_rows_are_never_of_an_older_policy(tmp_path, system, is_late):
    flags = (f"--system={system}", "--num-workers=2", "--envs-per-worker=4", "--rollout-length=8")
    more = ("--train-frames=3000", "--report-seconds=0.2")
    ended = run_training(tmp_path / "run", "--env=tests.tiny_envs:Catch-v0", *flags, *more)
    assert ended.code == 0, ended.stderr
    lags = [record["policy_lag_max"] for record in metrics(tmp_path / "run")]
    assert (max(lag for lag in lags if lag is not None) > 0) == is_late


@pytest.mark.parametrize("more", [["--serial"], [], ["--system=impala"], ["--system=seed"]])
def test_a_forced_lag_is_there_and_no_row_is_left_out_for_it(tmp_path, more):
    ended = run_training(tmp_path / "run", *TINY, "--forced-lag=30", "--train-frames=15000", *more)
    assert ended.code == 0, ended.stderr
    records = metrics(tmp_path / "run")
    # Before some 60 steps, 2,000 decisions, there are no weights as old as that; and a record may
    # have a report of the learner that began during the one before.
    later = [r for i, r in enumerate(records[2:]) if records[i]["env_steps"] > 2500]
    lags = [r["policy_lag_mean"] for r in later if r["policy_lag_mean"] is not None]
    assert lags
    assert all(30 <= lag < 60 for lag in lags), lags
    assert records[-1]["dropped_rows"] == 0
