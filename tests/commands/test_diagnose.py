"""`sfrl diagnose`: every rule on a run that really has the fault."""

import json
import os
import re
import shutil
import signal
from dataclasses import asdict, replace

import pytest

from sfrl import WorkerError, train
from sfrl.commands import EXIT_FOUND, diagnose
from sfrl.runs.diagnosis import RULES
from sfrl.runs.diagnosis import diagnose as diagnosed
from sfrl.runs.figures import figures
from sfrl.runs.reader import read
from sfrl.settings.algorithms import user_settings
from sfrl.settings.defaults import defaults_for
from sfrl.systems import SYSTEMS
from tests.runs import ROOT, TINY, finish, metrics, training, wait_for

SMALL = {
    "serial": True,
    "tune": "off",
    "precision": "float32",
    "report_seconds": 0.05,
    "lr_schedule": "constant",
    "num_workers": 1,
    "num_splits": 1,
    "envs_per_worker": 8,
    "rollout_length": 16,
    "batch_size": 64,
    "minibatches": 2,
    "epochs": 2,
}
DIVERGES = {"optimizer": "sgd", "normalize_returns": False, "max_grad_norm": 1e9}
FAULTS = {
    "score-flat": {"env": "tests.tiny_envs:Guess-v0", "train_frames": 3200},
    "score-fell": {"env": "CartPole-v1", "train_frames": 7000},
    "entropy-gone": {"env": "CartPole-v1", "learning_rate": 1.0, "train_frames": 2000},
    "value-loss-diverging": {
        "env": "Pendulum-v1",
        "model": "flat",
        "learning_rate": 2.0,
        "train_frames": 3000,
        **DIVERGES,
    },
    "clip-fraction-high": {
        "env": "CartPole-v1",
        "train_frames": 1200,
        "learning_rate": 0.02,
        "epochs": 8,
        "ppo_clip": 0.05,
    },
    "lag-high": {
        "env": "tests.tiny_envs:Catch-v0",
        "train_frames": 2000,
        "forced_lag": 50,
        "epochs": 4,
    },
    "episodes-never-end": {
        "env": "Pendulum-v1",
        "env_kwargs": {"max_episode_steps": -1},
        "train_frames": 5200,
        "envs_per_worker": 1,
        "minibatches": 1,
        "epochs": 1,
        "rollout_length": 64,
    },
    "nan": {"env": "tests.faulty_env:GivesNaN-v0", "train_frames": 500},
    "failed": {"env": "tests.faulty_env:GivesNaN-v0", "train_frames": 500, "on_nan": "stop"},
    "nothing": {"env": "CartPole-v1", "train_frames": 2500},
}
# What the figure has, besides numbers.
FIGURES = {
    "score-flat": r"[45](\.\d+)? at first, [45](\.\d+)? in the last quarter; .* [01] to (8|9|10)$",
    "score-fell": r"\d(\.\d+)? now, [5-9]\d(\.\d+)? at best, [4-9]\d(\.\d+)? at first; "
    r".* [89] to \d{3}$",
    "entropy-gone": r"entropy is \S+ nats, and was up to 0\.\d+",
    "value-loss-diverging": r"value_loss was \S+ in the first quarter, and is \d(\.\d+)?e\+",
    "clip-fraction-high": r"ppo_clipped_fraction is 0\.[3-9]",
    "lag-high": r"policy_lag_mean is [56]\d optimizer steps; a round of all environments takes 8;",
    "episodes-never-end": r"5,2\d\d decisions of each environment",
    "nan": r"the environment has given it at least [1-9]\d* times",
    "failed": r"NonFiniteError: .*NaN or infinity: reward nan",
    "environment-slow": r"env_step is (9\d|100)% .*, about (9(\.\d)?|1\d) ms for a decision; the ",
    "restarts": r"worker_restarts is [1-9]\d*, .*; at last: rollout-0 .* RuntimeError: the pole",
    "killed": r"the log's last message: rollout-0 ",
    "learner-bound": r"rollout/wait_slot is [5-9]\d% of their time; the learner works (9\d|100)%",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each run the findings by their rules' names."""
    folder = tmp_path_factory.mktemp("runs")
    # Of a checkpoint the log would tell last.
    raising = ("--env=tests.faulty_env:Raises-v0", "--checkpoint-seconds=600")
    busy = ("--epochs=20", "--train-frames=700")
    slow = ("--env=Latency", '--env-kwargs={"mean_ms": 10}', "--train-frames=800")
    with (  # they start while the others train
        training(folder / "restarts", *TINY[1:], *raising) as crashing,
        training(folder / "learner-bound", *TINY, *busy) as learning,
        # In a serial run the learner waits for nobody.
        training(folder / "environment-slow", *TINY[1:], *slow) as stepping,
    ):
        for name, settings in FAULTS.items():
            try:
                train(**SMALL | settings, run_dir=folder / name)
            except WorkerError:
                assert name == "failed"
        train(run_dir=folder / "score-fell", resume=True, learning_rate=1.0, train_frames=9400)
        wait_for(lambda: any(r["worker_restarts"] for r in metrics(folder / "restarts")))
        live = read(folder / "restarts")
        os.killpg(crashing.pid, signal.SIGKILL)
        crashing.wait()
        assert finish(learning).code == finish(stepping).code == 0
    runs = {path.name: read(path) for path in folder.iterdir()}
    return {
        name: {finding.name: finding for finding in diagnosed(run)} for name, run in runs.items()
    } | {"folder": folder, "live": live}


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_with_the_fault_is_told_of_it_with_figure_rule_and_flag(name, found):
    finding = found["restarts" if name == "killed" else name][name]
    assert re.search(FIGURES[name], finding.figure), finding.figure
    assert finding.what.endswith(".")
    assert finding.rule
    assert "--" in finding.remedy or name in ("restarts", "failed")
    flags = {setting.flag for setting in user_settings().values()}
    assert {*re.findall(r"--[a-z-]+", finding.remedy)} <= flags


def test_a_step_is_timed_without_the_start_and_without_settings(found):
    run = read(found["folder"] / "environment-slow")
    late = [record | {"time_s": record["time_s"] + 100} for record in run.records]
    for other in (replace(run, settings={}), replace(run, records=late)):
        [slow] = [finding for finding in diagnosed(other) if finding.name == "environment-slow"]
        assert re.search(r"about (9(\.\d)?|1\d) ms", slow.figure)


def test_a_killed_run_is_resumed_if_it_has_a_checkpoint(found):
    run = read(found["folder"] / "restarts")
    for what_is_left, flags in (
        ({"checkpoints": ()}, ["--config"]),
        ({"checkpoints": [run.folder]}, ["--resume"]),
        ({"checkpoints": (), "settings": {}}, []),  # of a run that has not learned
    ):
        told = diagnosed(replace(run, **what_is_left))
        [killed] = [finding for finding in told if finding.name == "killed"]
        assert re.findall(r"--(?:resume|config)", killed.remedy) == flags


def test_a_run_that_is_well_is_told_so(found, capsys):
    assert found["nothing"] == {}
    assert diagnose.main([str(found["folder"] / "nothing")], "sfrl diagnose") == 0
    assert f"none of {len(RULES)} rules finds anything wrong" in capsys.readouterr().out


def test_a_score_that_has_collapsed_is_not_called_flat(found):
    assert "score-flat" not in found["score-fell"]


def test_one_record_of_many_is_not_missed(found, tmp_path, capsys):
    run_dir = tmp_path / "long"
    shutil.copytree(found["folder"] / "nothing", run_dir)
    # The last interval of a run may have learned nothing, which the rule would leave out.
    learned = {"total_loss": 0.5, "value_loss": 0.5, "explained_variance": 0.0}
    record = metrics(run_dir)[-1] | learned
    records = [{**record, "time_s": float(second)} for second in range(1200)]
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    assert diagnose.main([str(run_dir)], "sfrl diagnose") == 0
    records[1001] |= {"value_loss": 1e9}
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    capsys.readouterr()
    assert diagnose.main([str(run_dir)], "sfrl diagnose") == EXIT_FOUND
    assert "value-loss-diverging" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, ""),
        ({"target_every": 100}, "; raise --target-every"),
        ({"normalize_returns": True, "value_encoder": "shared", "value_lr_factor": 3.0}, ""),
        (
            {"normalize_returns": False, "value_encoder": "separate", "value_lr_factor": 3.0},
            "; lower --value-lr-factor; --normalize-returns if rewards are large",
        ),
    ],
)
def test_only_flags_are_advised_that_the_runs_system_has(found, settings, remedy):
    run = read(found["folder"] / "value-loss-diverging")
    names = ("value_encoder", "value_lr_factor", "normalize_returns", "target_every")
    rest = {name: value for name, value in run.settings.items() if name not in names}
    run = replace(run, settings=rest | settings)
    [finding] = [f for f in diagnosed(run) if f.name == "value-loss-diverging"]
    assert finding.remedy == f"lower --learning-rate{remedy}"


@pytest.mark.parametrize(
    ("system", "env"),
    [("sac", "Pendulum-v1")]
    + [(s, env) for s in SYSTEMS if s != "sac" for env in ("Pong", "CartPole-v1")],
)
def test_no_flag_is_advised_that_the_system_refuses(system, env, found):
    settings = asdict(defaults_for(env, {"system": system})) | {"train_frames": 3200}
    refused = {*SYSTEMS[system].fixed}
    refused |= {"ppo_clip"} if settings.get("loss") == "vtrace" else set()
    refused |= {"rnn", "tune"} if "replay_size" in settings else set()
    refused |= {"frame_stack", "wrappers", "threads_per_worker"} if env == "Pong" else {"frameskip"}
    flags = {setting.flag for name, setting in user_settings().items() if name in refused}
    advised = 0
    for name in FIGURES:
        folder = found["folder"] / ("restarts" if name == "killed" else name)
        run = replace(read(folder), settings=settings)
        for finding in diagnosed(run):
            told = {*re.findall(r"--[a-z-]+", finding.remedy)}
            assert not told & flags
            advised += len(told)
    assert advised


def test_stacks_are_advised_where_an_environment_has_none_of_its_own(found):
    run = read(found["folder"] / "score-flat")
    for env, has in (("Pong", False), ("CartPole-v1", True)):
        settings = run.settings | {"env": env, "epochs": 1}
        [flat] = [f for f in diagnosed(replace(run, settings=settings)) if f.name == "score-flat"]
        assert ("--frame-stack=4" in flat.remedy) == has
        assert "--epochs" not in flat.remedy


def test_a_live_run_is_told_of_as_well(found):
    assert found["live"].state == "live"
    assert figures(found["live"])["seconds_left"] > 0
    assert "restarts" in [finding.name for finding in diagnosed(found["live"])]


def test_findings_are_printed_for_people_and_for_programs(found, capsys):
    name = str(found["folder"] / "score-flat")
    assert diagnose.main([name], "sfrl diagnose") == EXIT_FOUND
    text = capsys.readouterr().out
    [finding] = [f for f in found["score-flat"].values() if f.name == "score-flat"]
    for part in finding:
        assert part in " ".join(text.split())
    assert diagnose.main([name, "--json"], "sfrl diagnose") == EXIT_FOUND
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "ended"
    assert finding._asdict() in told["findings"]


def test_every_rule_has_a_run_and_a_line_in_the_docs():
    table = (ROOT / "docs/runs.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \| ", table, re.M)) == set(FIGURES)
    assert len(FIGURES) == len(RULES)
