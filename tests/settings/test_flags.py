"""Flags: forms of numbers, names of other trainers, and the same style in every program."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import sfrl
from sfrl.commands import EXIT_USAGE, bench, enjoy
from sfrl.commands import train as cli
from sfrl.records import checkpoint
from sfrl.settings import synonyms
from sfrl.settings.algorithms import user_settings
from sfrl.settings.fields import seconds
from sfrl.settings.flags import whole_number
from tests.runs import ROOT

PROGRAMS = {"train.py": cli.main, "enjoy.py": enjoy.main, "sfrl bench": bench.main}


@pytest.fixture(autouse=True)
def as_the_programs_find_it(tmp_path, monkeypatch):
    """An empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("4", 4), ("-1", -1), ("+7", 7), ("0", 0), ("1_000_000", 10**6), ("1e6", 10**6)),
        *(("2.5e6", 2_500_000), ("1E+3", 1000), ("10m", 10**7), ("10M", 10**7), ("500k", 500_000)),
        *(("1.5K", 1500), ("2b", 2 * 10**9), ("2.", 2), ("123456789012345678901", None)),
    ],
)
def test_a_whole_number_has_many_forms(text, number):
    assert whole_number(text) == (int(text) if number is None else number)


@pytest.mark.parametrize(
    "text",
    [
        *("1.5", "1e-3", "0.0001k", "", "k", "m5", "1e", "e6", "1e6e6", "1 000", "1,000", "inf"),
        *("nan", "1/2", "0x10", "1__0", "_1", "1e999999999", "1.00000000000000000000000000001m"),
    ],
)
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  read_flags tells it in its own words
        whole_number(text)


def test_a_time_is_a_number_of_seconds_or_has_a_unit():
    times = {"90": 90, "90s": 90, "1.5m": 90, "2h": 7200, "0": 0, "1e3": 1000}
    assert {text: seconds(text) for text in times} == times
    flags = ["--env=CartPole-v1", "--run-dir=x"]
    assert cli.parse([*flags, "--video-every=10m"]).video_every == 600
    for text in ("", "m", "10d", "10 min", "1m30s"):
        with pytest.raises(ValueError, match=r"must be a time, like --video-every=90s, 10m or 2h"):
            cli.parse([*flags, f"--video-every={text}"])


def test_every_whole_number_of_a_run_takes_all_forms_and_stays_one():
    run = ["--env=CartPole-v1", "--run-dir=x"]
    config = cli.parse([*run, "--train-frames=2.5e6", "--keep_checkpoints", "1k", "--seed=1_0"])
    assert (config.train_frames, config.keep_checkpoints, config.seed) == (2_500_000, 1000, 10)
    assert cli.parse([*run, "--num-workers=1e0"]).num_workers == 1
    checkpoint.save_config(config, Path())
    assert '"train_frames": 2500000,' in Path("config.json").read_text()
    saved = json.loads(Path("config.json").read_text())
    assert saved == {**dataclasses.asdict(config), "starts": []}


def test_no_synonym_is_a_flag_and_every_remedy_names_flags_that_there_are():
    enjoys = {field.name for field in dataclasses.fields(enjoy.Args)}
    for own, table in ((set(user_settings()), synonyms.OF_TRAIN), (enjoys, synonyms.OF_ENJOY)):
        remedies = {name: remedy for name, remedy in table.items() if name not in own}
        assert len(remedies) > 50
        for remedy in set(remedies.values()):
            known = enjoys if "sfrl enjoy" in remedy else own
            named = re.findall(r"--([a-z-]+)", remedy)
            assert {name.replace("-", "_") for name in named} <= known, remedy
    assert not user_settings().keys() & synonyms.OF_TRAIN.keys()
    for remedy in synonyms.OF_PYTHON.values():
        assert "--" not in remedy or "sfrl enjoy" in remedy


@pytest.mark.parametrize(
    ("program", "flags", "lines"),
    [
        ("train.py", "--lr=3e-4", ["--lr is unknown; use --learning-rate"]),
        (
            "train.py",
            "--num-envs 8 --total_timesteps=1e6 --track --no-cuda",
            [
                "--num-envs is unknown; use --num-workers=N and --envs-per-worker=K, which",
                "--total_timesteps is unknown; use --train-frames",
                "--track is unknown; use --log-to=wandb, trackio or module:Class; curves",
                "--no-cuda is unknown; use --device=cuda or --device=cpu",
            ],
        ),
        (
            "train.py",
            "--algo=APPO --train_for_env_steps=1 --num_envs_per_worker=4 --rollout=32",
            [
                "--algo is unknown; use --system",
                "--train_for_env_steps is unknown; use --train-frames",
                "--num_envs_per_worker is unknown; use --envs-per-worker",
                "--rollout is unknown; use --rollout-length",
            ],
        ),
        (
            "train.py",
            "--train.gae-lambda=0.9 --train.gamma=0.9 --capture-video --save-model",
            [
                "--train.gae-lambda is unknown; use --trace-lambda",
                "--train.gamma is unknown; did you mean --gamma?",
                "--capture-video is unknown; use --video-every=10m",
                "--save-model is unknown; checkpoints are always saved; --checkpoint-seconds",
            ],
        ),
        (
            "train.py",
            "--train-frames=1.5 --seed=1e-3",
            [
                "--train-frames=1.5 must be a whole number, like --train-frames=40000000",
                "--seed=1e-3 must be a whole number",
            ],
        ),
        (
            "train.py",
            "--env-threads=2",
            ["--env-threads is unknown; use --threads-per-worker for environments that wait"],
        ),
        ("train.py", "--env=Pnog --model=.x:Y", ["'Pnog' is neither"]),
        ("train.py", "--env=CartPole-v1 --model=.x:Y", ["model=.x:Y: cannot import '.x'"]),
        (
            "enjoy.py",
            "--model-path=x --lr=3 --fsp=3 --run_dir=x",
            [
                "--model-path is unknown; use --checkpoint=latest, best or FILE",
                "--lr is unknown; a checkpoint has the settings that it was trained with",
                "--fsp is unknown; did you mean --fps?",
            ],
        ),
        ("enjoy.py", "--episodes=1.5", ["--episodes=1.5 must be a whole number, like --episodes="]),
        (
            "enjoy.py",
            "--episodes=0 --fps=nan",
            ["episodes=0 must be at least 1", "fps=nan must be above 0"],
        ),
        ("enjoy.py", "Pong", ["'Pong' is no flag; settings are given as --name=value"]),
        ("enjoy.py", "--run-dir=nowhere", ["run_dir=nowhere is no folder"]),
        ("enjoy.py", "--run-dir=.", ["checkpoints has no checkpoint"]),
        ("enjoy.py", "", ["no run with a checkpoint in runs/; train one first"]),
        ("sfrl bench", "--lr=3", ["--lr is unknown; use --learning-rate"]),
        ("sfrl bench", "--seconds=x", ["--seconds=x must be a number"]),
        ("sfrl bench", "trainin", ["'trainin' is no part of the benchmark"]),
        ("sfrl bench", "--json=no/x", ["no/x cannot be written"]),
    ],
)
def test_a_mistake_is_told_in_a_line_with_its_remedy_by_every_program(
    program, flags, lines, capsys
):
    assert PROGRAMS[program](flags.split(), program) == EXIT_USAGE
    output = capsys.readouterr()
    assert output.out == ""
    told = output.err.splitlines()
    assert told[0].startswith(f"{program}: ")
    assert len(told) == len(lines), output.err
    assert all(line in text for line, text in zip(lines, told, strict=True)), output.err


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_tells_its_version_which_has_one_source(program, capsys):
    with pytest.raises(SystemExit) as leaving:
        PROGRAMS[program](["--version"], program)
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"sfrl {sfrl.__version__}\n"


@pytest.mark.filterwarnings("ignore")  # setuptools' own
def test_the_package_has_the_version_of_the_module():
    project = read_configuration(ROOT / "pyproject.toml")["project"]
    assert project["version"] == sfrl.__version__
