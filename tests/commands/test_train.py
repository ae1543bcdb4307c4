"""The command line: what is refused before anything starts, and what a flag comes to."""

import ast
import dataclasses
import itertools
import json
import os
import pty
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from sfrl import settle as settle_module
from sfrl.commands import train as cli
from sfrl.ipc.shared_memory import unlink_segments
from sfrl.records import checkpoint, run_folder
from sfrl.run.trainer import Summary, Trainer
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.algorithms import ALGORITHMS, user_settings
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.defaults import defaults_for
from sfrl.settle import settle
from tests.records.test_checkpoint import make_state
from tests.runs import ROOT, TINY, finish, run_training, segments, training

# Other tools call these; more may come, none may go.
FIXED_FLAGS = """
--env --run-dir --resume --seed --train-seconds --train-frames --device --precision --num-workers
--envs-per-worker --num-splits --num-policy-workers --rollout-length
--batch-size --epochs --loss --learning-rate --lr-schedule --gamma --entropy-coef --value-coef
--max-grad-norm --rho-clip --c-clip --ppo-clip --max-policy-lag --queue --serial --sticky-actions
--frameskip
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/` is relative to the present folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved_run(run_dir: str, *flags: str) -> Config:
    """What a run with these flags leaves behind of its settings."""
    settings = cli.parse([f"--run-dir={run_dir}", *flags])
    (Path(run_dir) / "checkpoints").mkdir(parents=True)
    (Path(run_dir) / "checkpoints/latest-000000000001.pt").touch()
    checkpoint.save_config(settings, Path(run_dir))
    return settings


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--env=Pnog", ["did you mean Pong?"]),
        ("--env=Pnog --gamma=2 --c-clip=3", ["did you mean Pong?", "gamma=2.0", "c_clip=3.0"]),
        ("--env=CartPol-v1", ["did you mean CartPole-v1"]),
        ("--env=LunarLander-v3", ["Box2D is not installed"]),
        ("--evn=Pong", ["--evn is unknown; did you mean --env?"]),
        ("--learning_rat 0.1", ["--learning_rat is unknown; did you mean --learning-rate"]),
        ("--xyzzy", ["--xyzzy is unknown; --help-all lists all flags"]),
        ("Pong", ["'Pong' is no flag; settings are given as --name=value"]),
        ("--env", ["--env needs a value"]),
        ("--env --resume", ["--env needs a value"]),
        ("--resume=yes", ["--resume=yes must have no value; use --resume"]),
        ("--serial=False", ["--serial=False must have no value; use --no-serial"]),
        ("--no-serial=0", ["--no-serial=0 must have no value; use --serial"]),
        ("--serial 1", ["'1' is no flag"]),
        ("--num-workers=two", ["--num-workers=two must be a whole number"]),
        ("--num_workers 2.5", ["--num_workers=2.5 must be a whole number"]),
        ("--gamma=high", ["--gamma=high must be a number, like --gamma=0.99"]),
        ("--loss=ppo", ["--loss=ppo must be one of appo, vtrace"]),
        (
            "--numworkers=2 --seed=x --loss=ppo",
            ["--numworkers is unknown; did you mean --num-workers", "--seed=x", "--loss=ppo"],
        ),
        (
            "--env=CartPole-v1 --num-splits=2 --envs-per-worker=15 --c-clip=2 --gamma=2",
            ["gamma=2.0 must lie", "try envs_per_worker=16", "try c_clip=1.0"],
        ),
        (
            "--env=CartPole-v1 --frameskip=4 --episodic-life",
            ["frameskip=4 is for Atari", "episodic_life=True is for Atari"],
        ),
        ("--env=CartPole-v1 --model=nature_cnn", ["model=nature_cnn needs images"]),
        ("--env=CartPole-v1 --model=nowhere:Net", ["cannot import 'nowhere'"]),
        ("--env=CartPole-v1 --model=tests.runs:Net", ["has no attribute 'Net'"]),
        pytest.param(
            "--env=CartPole-v1 --device=cuda",
            ["device=cuda needs a GPU"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        pytest.param(
            "--env=CartPole-v1 --device=cpu --policy-devices=cpu,cuda:1",
            ["policy_devices=cuda:1 needs a GPU"],
            marks=pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are GPUs"),
        ),
        (
            "--env=CartPole-v1 --device=gpu --policy-devices=cpu,auto",
            ["device='gpu' must be auto, cpu, cuda or cuda:N", "policy_devices='cpu,auto' must be"],
        ),
        ("--resume", ["no run with a checkpoint in runs/; train one first, or name it"]),
        ("--resume --env=Pong", ["no run of --env=Pong with a checkpoint in runs/"]),
        ("--resume --run-dir=nowhere", ["run_dir=nowhere holds no run to resume"]),
    ],
)
def test_what_cannot_work_exits_with_2_before_anything_starts(flags, texts, capsys, tmp_path):
    assert cli.main(flags.split(), "train.py") == cli.EXIT_USAGE
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0].startswith("train.py: ")
    assert len(lines) == len(texts), "each problem has its line, and there is nothing else"
    assert all(text in line for text, line in zip(texts, lines, strict=True))
    assert not list(tmp_path.iterdir())
    assert not segments(os.getpid())
    trackers = "multiprocessing.resource_tracker"  # one may be left by earlier tests
    assert all(trackers in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_a_buffer_that_shared_memory_cannot_hold_exits_with_2_and_leaves_nothing(tmp_path):
    with training(tmp_path / "run", "--env=Pong", "--slots-per-split=100000") as process:
        ended = finish(process)
    assert (ended.code, ended.stdout) == (2, "")
    assert re.search(r"needs \d+ MiB of shared memory, but .* has \d+ MiB available", ended.stderr)
    assert not segments(process.pid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["--{}={}", "--{} {}"])
@pytest.mark.parametrize("dash", ["-", "_"])
def test_a_flag_may_have_dashes_or_underscores_and_its_value_may_stand_apart(form, dash):
    given = {
        "env": "CartPole-v1",
        "run_dir": os.path.abspath("x"),
        "keep_checkpoints": "2",
        "gamma": "0.5",
    }
    args = [form.format(name.replace("_", dash), value) for name, value in given.items()]
    parsed = cli.parse([*" ".join(args).split(), f"--debug{dash}buffers", f"--no{dash}resume"])
    assert {name: str(getattr(parsed, name)) for name in given} == given
    assert parsed.debug_buffers


@pytest.mark.parametrize("env", ["Pong", "CartPole-v1"])
def test_help_has_every_flag_with_its_doc_and_the_default_of_the_kind_of_env(env, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["--help-all", f"--env={env}"], "train.py")
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    defaults = dataclasses.asdict(defaults_for(env))
    assert set(FIXED_FLAGS.split()) <= {setting.flag for setting in user_settings().values()}
    docs = field_docs()
    assert docs.keys() == defaults.keys(), "every setting has a doc"
    assert "--tuned" not in text
    for name, doc in docs.items() - {("tuned", docs["tuned"])}:
        _, _, entry = text.partition(f" --{name.replace('_', '-')}")
        assert doc in entry, name
        default = defaults[name] if defaults[name] != "" else "''"
        assert entry[entry.index(doc) :].partition("(default: ")[2].startswith(f"{default})"), name
    assert ("(default: 40000000)" in text) == (env == "Pong")


@pytest.mark.parametrize(
    ("system", "own"), [("appo", "--entropy-coef"), ("dqn", "--replay-size"), ("sac", "--gamma")]
)
def test_help_has_the_usual_flags_in_groups_and_tells_where_the_others_are(system, own, capsys):
    env = "Pendulum-v1" if system == "sac" else "CartPole-v1"
    texts, flags = {}, {}
    for option in ("--help", "-h", "--help-all"):
        with pytest.raises(SystemExit) as leaving:
            cli.main([option, f"--env={env}", f"--system={system}"], "train.py")
        assert leaving.value.code == 0
        texts[option] = capsys.readouterr().out
        flags[option] = set(re.findall(r"^  (--[a-z-]+)", texts[option], re.M))
    assert texts["--help"] == texts["-h"]
    assert 19 <= len(flags["--help"] - {"--help-all", "--version"}) <= 22
    assert {"--env", "--run-dir", "--resume", "--num-workers", "--batch-size", own} <= flags[
        "--help"
    ]
    assert flags["--help"] < flags["--help-all"]
    for title in ("The run:", "The environment:", "What is learned from:", "The optimizer:"):
        assert f"\n{title}\n" in texts["--help"]
    assert "Faults:" not in texts["--help"], "a group without usual flags"
    num_settings = len(flags["--help-all"] - {"--help-all", "--version"})
    assert texts["--help"].endswith(f"\n--help-all tells of all {num_settings} settings.\n")
    assert "tells of all" not in texts["--help-all"]


def field_docs() -> dict[str, str]:
    """The docs under the fields of an actor-critic's settings, in one line each."""
    docs = {}
    others = {f"{algorithm}.py" for algorithm in ALGORITHMS if algorithm != "actor_critic"}
    others |= {"q_values.py", "replay.py"}  # what some of these have in common
    for path in (p for p in (ROOT / "sfrl/settings").glob("*.py") if p.name not in others):
        for node in (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)):
            for field, doc in itertools.pairwise(node.body):
                is_field = isinstance(field, ast.AnnAssign) and not field.target.id.isupper()
                if is_field and isinstance(doc, ast.Expr):
                    docs[field.target.id] = " ".join(ast.literal_eval(doc.value).split())
    return docs


@pytest.fixture
def activated(monkeypatch):
    """`.venv`, as its bin/activate does it."""
    own = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(own), prepend=os.pathsep)


@pytest.mark.usefixtures("activated")
def test_a_terminal_is_told_what_to_type_next_before_the_last_line(tmp_path):
    ours, theirs = pty.openpty()
    run_dir = tmp_path / "a run"
    with training(run_dir, *TINY, "--train-frames=3000", cwd=tmp_path, stdout=theirs) as process:
        os.close(theirs)
        text = b"".join(chunks(ours)).decode()
        assert finish(process).code == 0
    *lines, last = text.splitlines()
    assert json.loads(last)["run_dir"] == str(run_dir)
    assert lines[-4:] == [
        f"watch:   python {ROOT}/enjoy.py --run-dir='a run' --video=film.mp4",
        f"go on:   python {ROOT}/train.py --resume --run-dir='a run' --train-frames=6000",
        "curves:  tensorboard --logdir 'a run'",
        "",
    ]


def chunks(descriptor):
    """What is written to a terminal, until nobody has it open."""
    with suppress(OSError):
        while chunk := os.read(descriptor, 1 << 16):
            yield chunk
    os.close(descriptor)


@pytest.mark.usefixtures("activated")
def test_what_to_type_next_depends_on_what_was_typed_and_what_is_there():
    config = saved_run("runs/x", "--env=CartPole-v1")
    summary = Summary(1000, 1000, 1.0, 1000.0, 0, None, os.path.abspath("runs/x"))
    watch, go_on, _ = cli._next_steps(config, summary, "sfrl train", Path.cwd()).split("\n")[:3]
    assert watch == "watch:   sfrl enjoy --run-dir=runs/x --video=film.mp4"
    assert go_on == "go on:   sfrl train --resume --run-dir=runs/x", "its frames are not reached"
    empty = dataclasses.replace(summary, run_dir="y")
    assert cli._next_steps(config, empty, "sfrl train", Path.cwd()) == ""


def test_what_to_type_next_is_this_pythons_whether_it_is_activated_or_not(tmp_path, monkeypatch):
    folder = tmp_path / "venv/bin"
    folder.mkdir(parents=True)
    for name in ("python", "sfrl"):
        (folder / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python3"))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert cli._typed("python", tmp_path) == "venv/bin/python"
    assert cli._typed("sfrl", Path("/")) == str(folder / "sfrl").removeprefix("/")
    assert cli._typed("tensorboard", tmp_path) == "tensorboard", "it is not installed there"
    monkeypatch.setenv("PATH", str(folder))
    assert cli._typed("python", tmp_path) == "python"
    (folder / "python").rename(folder / "python3")
    (folder / "python3").chmod(0o755)
    assert cli._typed("python", tmp_path) == "python3"
    monkeypatch.setenv("PATH", "/usr/bin")
    assert cli._typed("sfrl", folder) == str(folder / "sfrl"), "a shell looks elsewhere for names"
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert cli._typed("python", tmp_path) == "python", "which is gone meanwhile"


def test_the_folder_is_named_for_env_and_time_and_never_shared():
    first, second = (cli.parse(["--env=tests.tiny_envs:Catch-v0"]).run_dir for _ in range(2))
    assert first != second
    for run_dir in (first, second):
        assert Path(run_dir).is_dir()
        assert Path(run_dir).parent == Path("runs").absolute()
        assert Path(run_dir).name.startswith("tests.tiny_envs-Catch-v0-20")


@pytest.mark.parametrize(
    ("left", "remedy"),
    [
        ("checkpoints/latest-000000000001.pt", "add --resume to go on with it"),
        ("checkpoints/best.pt", "it has best.pt, which --resume does not use: name another folder"),
        *[
            (f"checkpoints/{name}", f"it has {name}, which --resume does not use: name another")
            for name in ("latest-000000000001.pt.tmp", "latest-1.pt.left", "latest-1 (copy).pt")
        ],
        ("config.json", "no checkpoint yet: delete its config.json, or name another folder"),
        ("metrics.jsonl", "no checkpoint yet: delete its metrics.jsonl, or name another folder"),
        ("log.txt", "no checkpoint yet: delete its log.txt, or name another folder"),
        (
            "events.out.tfevents.1.host.2",
            "no checkpoint yet: delete its events.out.tfevents.1.host",
        ),
    ],
)
def test_a_folder_with_anything_of_a_run_is_refused_without_resume(left, remedy, capsys):
    path = Path("x") / left
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    assert cli.main(["--run-dir=x", "--env=CartPole-v1"], "train.py") == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: run_dir={Path('x').absolute()} already holds a run; ")
    assert remedy in error
    assert path.read_text() == "precious"
    assert [p for p in Path("x").rglob("*") if p.is_file()] == [path]
    with pytest.raises(run_folder.RunFolderError, match="already holds a run"):
        Trainer(ActorCriticConfig(run_dir="x", env="CartPole-v1", model="mlp", frameskip=1)).run()
    unlink_segments()


def test_nobody_is_told_to_delete_what_a_live_run_has():
    Path("x").mkdir()
    Path("x/log.txt").touch()
    lock = run_folder.lock(Path("x"))
    try:
        with pytest.raises(run_folder.RunFolderError, match="in use by a run that still goes on"):
            cli.parse(["--run-dir=x", "--env=CartPole-v1"])
    finally:
        run_folder.unlock(lock)


def test_a_run_may_begin_beside_files_of_others():
    Path("x").mkdir()
    Path("x/notes.txt").touch()
    assert cli.parse(["--run-dir=x", "--env=CartPole-v1"]).run_dir == os.path.abspath("x")


@pytest.mark.parametrize("begin", ["--resume --run-dir=runs/x", "--config=runs/x/config.json"])
@pytest.mark.parametrize(
    ("before", "now", "clip"), [("appo", "vtrace", 0.1), ("vtrace", "appo", 0.2)]
)
def test_what_another_setting_makes_useless_was_not_given(begin, before, now, clip):
    """A run of then, with a clip that did nothing, has it where it does something now."""
    saved = saved_run("runs/x", "--env=CartPole-v1", f"--loss={before}")
    saved = dataclasses.replace(saved, ppo_clip=0.2)
    checkpoint.save_config(saved, Path("runs/x"))
    checkpoint.save("runs/x", make_state() | {"config": dataclasses.asdict(saved)}, 100)
    assert cli.parse([*begin.split(), f"--loss={now}"]).ppo_clip == clip
    with pytest.raises(ConfigError, match=r"ppo_clip=0.3 is for loss=appo"):
        cli.parse([*begin.split(), "--loss=vtrace", "--ppo-clip=0.3"])


def test_a_run_without_its_config_goes_on_with_that_of_its_checkpoint(caplog):
    settings = saved_run("runs/x", "--env=CartPole-v1", "--gamma=0.5", "--train-seconds=9")
    state = make_state() | {"config": dataclasses.asdict(settings)}
    path = checkpoint.save("runs/x", state, 100)
    Path("runs/x/config.json").unlink()
    expected = dataclasses.replace(settings, resume=True, train_seconds=0.0)
    assert cli.parse(["--resume", "--run-dir=runs/x"]) == expected
    assert cli.parse(["--resume", "--env=CartPole-v1"]) == expected
    assert f"runs/x/config.json is missing; going by the settings in {path}" in caplog.text
    with pytest.raises(ConfigError, match=r"rnn_size=8 differs from the saved run's 0"):
        cli.parse(["--resume", "--run-dir=runs/x", "--rnn-size=8"])


def test_resume_advises_a_new_start_only_where_nothing_is_lost_by_it():
    Path("x").mkdir()
    remedy = "or start a run there without --resume"
    with pytest.raises(checkpoint.CheckpointError, match=remedy):
        cli.parse(["--resume", "--run-dir=x"])
    for content in ("log.txt", "checkpoints/best.pt"):
        (Path("x") / content).parent.mkdir(exist_ok=True)
        (Path("x") / content).touch()
        with pytest.raises(checkpoint.CheckpointError, match="holds no run to resume") as refusal:
            cli.parse(["--resume", "--run-dir=x"])
        assert remedy not in str(refusal.value)


def test_resume_finds_the_newest_run_of_the_env():
    saved_run("runs/old", "--env=CartPole-v1")
    newest = saved_run("runs/new", "--env=CartPole-v1", "--gamma=0.5")
    saved_run("runs/other", "--env=Acrobot-v1")
    assert cli.parse(["--resume", "--env=CartPole-v1"]) == dataclasses.replace(newest, resume=True)
    assert cli.parse(["--resume"]).run_dir == os.path.abspath("runs/other")
    assert cli.parse(["--resume", "--run_dir", "runs/old"]).run_dir == os.path.abspath("runs/old")


def test_flags_override_saved_settings_and_a_time_limit_is_not_kept():
    saved_run("x", "--env=CartPole-v1", "--gamma=0.5", "--epochs=7", "--train-seconds=9")
    resumed = cli.parse(["--resume", "--run-dir=x", "--epochs=3"])
    assert (resumed.env, resumed.gamma, resumed.epochs) == ("CartPole-v1", 0.5, 3)
    assert resumed.train_seconds == 0


def test_a_new_run_begins_with_the_settings_of_a_file_and_the_flags_over_them(monkeypatch):
    saved = saved_run("x", "--env=CartPole-v1", "--gamma=0.5", "--epochs=7", "--train-seconds=9")
    checkpoint.save_config(dataclasses.replace(saved, resume=True, tuned="so"), Path("x"))
    flags = ["--config=x/config.json", "--run-dir=y", "--epochs=3"]
    expected = {"run_dir": os.path.abspath("y"), "config": os.path.abspath("x/config.json")}
    assert cli.parse(flags) == dataclasses.replace(saved, epochs=3, **expected)
    assert cli.parse(["--config=x/config.json"]).run_dir != saved.run_dir
    monkeypatch.setenv("HOME", os.path.abspath("x"))
    other = cli.parse(["--config=~/config.json", "--run-dir=y", "--env=Acrobot-v1"])
    assert (other.env, other.epochs) == ("Acrobot-v1", 7)


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--config=no.json", ["no.json cannot be read as a config: No such file"]),
        ("--config=x", ["/x cannot be read as a config: it is no file; name a run's config.json"]),
        ("--config=pipe", ["/pipe cannot be read as a config: it is no file"]),
        ("--config=old.json", ["(of sfrl 0.0.7, and this", "unknown setting 'gama'; did you mean"]),
        ("--config", ["--config needs a value"]),
        ("--cfg=x", ["use --config=FILE, the config.json of a run"]),
        ("--config_fil=x", ["did you mean --config"]),
        (
            "--config=x/config.json --system=dqn --gamma=2",
            ["system=dqn differs from the appo whose settings config=x/config.json", "gamma=2.0"],
        ),
        (
            "--config=pong/config.json --preset=classic",
            ["preset=classic differs from the none whose settings config=pong/config.json has"],
        ),
        (
            "--config=x/config.json --resume --run-dir=x",
            ["config=x/config.json begins a new run, and resume goes on"],
        ),
        (
            "--config=pong/config.json --env=CartPole-v1",
            ["frameskip=4", "what was not set here is as in config=pong/config.json"],
        ),
    ],
)
def test_what_a_run_cannot_begin_with_is_told(flags, texts, capsys):
    saved_run("x", "--env=CartPole-v1")
    saved_run("pong", "--env=Pong")
    os.mkfifo("pipe")
    Path("old.json").write_text('{"gama": 1, "starts": [{"version": "0.0.7"}]}')
    assert cli.main(flags.split(), "train.py") == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert all(text in error for text in texts), error


def test_the_tuner_leaves_the_settings_of_a_file_alone_unless_it_is_asked(monkeypatch):
    saved_run("x", "--env=CartPole-v1")
    tuned: list[Config] = []
    monkeypatch.setattr("sfrl.settle.tune", lambda config, *_: tuned.append(config) or config)
    for more in ({}, {"tune": "cached"}):
        given = {"config": "x/config.json", **more}
        config, spec = settle(given)
        settle_module.tuned(config, given, spec)
        assert len(tuned) == len(more)


def test_a_resumed_run_may_be_moved():
    saved_run("x", "--env=CartPole-v1")
    Path("x").rename("y")
    assert cli.parse(["--resume", "--run-dir=y"]).run_dir == os.path.abspath("y")


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--env=Acrobot-v1", "env=Acrobot-v1 differs from the saved run's CartPole-v1"),
        ("--rnn-size=8", "rnn_size=8 differs from the saved run's 0"),
        (
            "--model=tests.nets.test_model:TinyCNN",
            "model=tests.nets.test_model:TinyCNN differs from the saved run's norm_mlp",
        ),
        ("--optimizer=rmsprop", "optimizer=rmsprop differs from the saved run's adam"),
        ("--preset=classic", "preset=classic differs from the saved run's none"),
        ("--value-encoder=shared", "value_encoder=shared differs from the saved run's separate"),
        ("--no-normalize-returns", "normalize_returns=False differs from the saved run's True"),
    ],
)
def test_resume_refuses_what_the_checkpoint_depends_on(flag, text, capsys):
    saved_run("x", "--env=CartPole-v1")
    assert cli.main(["--resume", "--run-dir=x", flag], "train.py") == cli.EXIT_USAGE
    assert text in capsys.readouterr().err
    assert cli.parse(["--resume", "--run-dir=x", "--model=auto"]).model == "norm_mlp"


def test_a_resumed_run_keeps_its_network_when_another_one_is_usual():
    saved_run("x", "--env=Pong", "--model=nature_cnn")
    for flags in ([], ["--model=auto"]):
        assert cli.parse(["--resume", "--run-dir=x", *flags]).model == "nature_cnn"


def test_a_game_that_is_spelled_otherwise_is_the_saved_one():
    saved_run("x", "--env=Pong")
    for name in ("pong", "ALE/Pong-v5"):
        assert cli.parse(["--resume", "--run-dir=x", f"--env={name}"]).resume
    with pytest.raises(ConfigError, match="env=breakout differs from the saved run's Pong"):
        cli.parse(["--resume", "--run-dir=x", "--env=breakout"])


def test_a_rollout_beyond_all_memory_is_refused_at_once():
    began_s = time.process_time()
    with pytest.raises(ConfigError, match="rollout_length=100000000000"):
        cli.parse(["--env=CartPole-v1", "--run-dir=x", "--rollout-length=100000000000"])
    assert time.process_time() - began_s < 10


def test_resume_without_a_checkpoint_exits_with_2(capsys):
    saved_run("x", "--env=CartPole-v1")
    assert cli.main(["--resume", "--run-dir=x"], "train.py") == cli.EXIT_USAGE
    assert "x/checkpoints has no checkpoint that can be read" in capsys.readouterr().err
    assert not segments(os.getpid())


def test_a_damaged_saved_config_exits_with_2(capsys):
    saved_run("x", "--env=CartPole-v1")
    Path("x/config.json").write_text('{"env": "CartPole-v1", "seed": "one", "batch": 3}')
    assert cli.main(["--resume", "--run-dir=x"], "train.py") == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert "x/config.json: seed='one' must be of type int" in error
    assert "x/config.json: unknown setting 'batch'" in error


def test_a_folder_that_cannot_be_written_is_told_in_a_line():
    ended = run_training(Path("/proc/sfrl"), *TINY)
    assert ended.code == 1
    assert "train.py: run_dir=/proc/sfrl cannot be written: " in ended.stderr
    assert "Traceback" not in ended.stderr
