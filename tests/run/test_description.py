"""The look at an environment, in a process of its own, and what constructors may do to a run."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing import connection
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from sfrl import envs
from sfrl.commands import train as cli
from sfrl.ipc.shared_memory import Stopped
from sfrl.records import checkpoint
from sfrl.run.apart import apart
from sfrl.run.description import describe
from sfrl.run.trainer import Trainer
from sfrl.settings.actor_critic import ActorCriticConfig
from tests.leaves import vector
from tests.runs import (
    ROOT,
    TIMEOUT_S,
    TINY,
    Ended,
    finish,
    group,
    run_training,
    segments,
    training,
    wait_for,
)

UNRULY = [*TINY[1:], "--env=tests.unruly_env:Unruly-v0", "--train-frames=500", "--num-workers=1"]


@pytest.fixture
def unruly(tmp_path, monkeypatch):
    """The folder in which Unruly notes where it was made, and from which runs start."""
    monkeypatch.setenv("UNRULY_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def makers(folder: Path) -> Counter[int]:
    """How many environments each process has made."""
    return Counter(int(line) for line in (folder / "made").read_text().split())


def finish_beside_helpers(process: subprocess.Popen[str]) -> Ended:
    """`finish`, where helpers hold the pipes open: they are killed once the trainer has ended."""
    process.wait(TIMEOUT_S)
    for helper in group(process.pid):
        helper.kill()
    return finish(process)


def test_it_says_what_a_look_in_this_process_says():
    for env in ("CartPole-v1", "tests.tiny_envs:Catch-v0", "Pong"):
        assert describe(env, envs.EnvOptions(), 60) == envs.describe(env)


def test_statistics_that_are_neither_shared_nor_saved_are_told_once(tmp_path):
    ended = run_training(
        tmp_path / "run", *TINY[1:], "--env=tests.tiny_envs:Normalized-v0", "--train-frames=300"
    )
    assert ended.code == 0, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if "the statistics of" in line]
    assert "Normalized-v0: the statistics of NormalizeObservation are neither shared nor" in line
    assert line in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ("RaisesWhenMade", "could not be made: RuntimeError: there is no pole (/"),
        ("ExitsWhenMade", "could not be made: SystemExit: 0 (/"),
        ("CrashesWhenMade", "could not be made: its process was killed by SIGSEGV"),
        ("EndsWhenMade", "could not be made: its process exited with 0"),
        ("HangsWhenMade", "was not made within 0.5 s (env_timeout=0.5); raise --env-timeout if"),
        ("NoArray", "NoArray-v0: observation_space is Text(1, 4, charset="),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(env, text, capsys, tmp_path):
    name = f"tests.unruly_env:{env}-v0"
    flags = [f"--env={name}", "--env-timeout=0.5", f"--run-dir={tmp_path}/run"]
    assert cli.main(flags, "train.py") == cli.EXIT_USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert text in line
    assert line.startswith("train.py: ")
    assert not list(tmp_path.iterdir())


def test_a_child_that_has_ended_before_anybody_looks_has_told_all(monkeypatch):
    wait = connection.wait

    def wait_for_its_end(receivers, _):
        time.sleep(2)
        return wait(receivers, 0)

    monkeypatch.setattr(connection, "wait", wait_for_its_end)
    assert describe("CartPole-v1", envs.EnvOptions(), 60.0) == envs.describe("CartPole-v1")


def test_a_signal_ends_the_look():
    signals: list[int] = []
    timer = threading.Timer(1, signals.append, [2])
    timer.start()
    started_s = time.monotonic()
    with pytest.raises(Stopped):
        describe("tests.unruly_env:HangsWhenMade-v0", envs.EnvOptions(), 60, signals)
    assert time.monotonic() - started_s < 10


def test_an_environment_of_this_program_needs_no_module_if_it_trains_by_itself():
    gymnasium.register("OfThisScript-v0", CartPoleEnv)
    for name in ("OfThisScript-v0", "__main__:OfThisScript-v0"):
        assert describe(name, envs.EnvOptions(), 60, is_serial=True).leaves == (vector(4),)
        with pytest.raises(envs.UnknownEnvError, match="in this program alone, which workers"):
            describe(name, envs.EnvOptions(), 60)


def test_the_trainer_looks_once_and_only_if_it_is_not_told(unruly):
    settings = {"env": "tests.unruly_env:Unruly-v0", "frameskip": 1, "num_workers": 1}
    config = ActorCriticConfig(**settings, model="mlp", batch_size=128, run_dir=str(unruly / "run"))
    Trainer(config, spec=envs.describe("CartPole-v1"))
    assert not (unruly / "made").exists()
    Trainer(config)
    assert sum(makers(unruly).values()) == 1


def test_an_unruly_environment_is_made_once_before_the_workers_and_not_in_the_trainer(unruly):
    with training(Path("run"), *UNRULY, cwd=unruly) as process:
        ended = finish_beside_helpers(process)
    assert ended.code == 0, ended.stderr
    assert "did not stop within" not in ended.stderr, "a thread is left, and nobody waits for it"
    assert sorted(makers(unruly).values()) == [1, 8]
    assert process.pid not in makers(unruly)
    assert ended.summary["run_dir"] == str(unruly / "run")
    assert not list((unruly / "elsewhere").iterdir())
    assert checkpoint.latest_paths(unruly / "run")


def test_in_a_serial_run_an_unruly_environment_keeps_neither_end_nor_folder_nor_locks(unruly):
    flags = [flag for flag in UNRULY if not flag.startswith("--train-frames")]
    with training(
        Path("run"), *flags, "--serial", "--checkpoint-seconds=0.2", cwd=unruly
    ) as killed:
        wait_for(lambda: checkpoint.latest_paths(unruly / "run"))
        killed.kill()
        killed.wait()
        assert group(killed.pid), "helpers live"
        frames = checkpoint.load_latest(unruly / "run").state["counters"]["env_frames"]
        resume = ["--resume", f"--train-frames={frames + 500}"]
        with training(Path("run"), *resume, cwd=unruly) as process:
            ended = finish_beside_helpers(process)
        assert not segments(killed.pid), "the next start could remove them"
        assert group(killed.pid), "helpers still live"
    assert ended.code == 0, ended.stderr
    assert not list((unruly / "elsewhere").iterdir())

    command = [sys.executable, str(ROOT / "enjoy.py"), "--run-dir=run", "--video=game.gif"]
    played = subprocess.run(
        [*command, "--episodes=1", "--max-steps=3"],
        cwd=unruly,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert json.loads(played.stdout.splitlines()[-1])["video"] == "game.gif"
    assert (unruly / "game.gif").stat().st_size > 0


TRACER = """import ctypes, sys, time
assert ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), None, None) == 0  # PTRACE_SEIZE
print("held", flush=True)
time.sleep(60)
"""


def let_itself_be_held(told: connection.Connection, trainer: int) -> None:
    ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER: by anybody
    told.send(os.getpid())
    time.sleep(60)


def test_a_process_that_does_not_end_when_it_is_killed_holds_nobody_up():
    """A debugger keeps it here, as a hung disk would."""
    with apart("tests.run.test_description:let_itself_be_held", "held", "is held") as side:
        line = [sys.executable, "-c", TRACER, str(side.receive(TIMEOUT_S))]
        tracer = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        assert tracer.stdout.readline() == "held\n"
        start_s = time.monotonic()
    assert 1 < time.monotonic() - start_s < 10, "it was not held, or held the test up"
    with tracer:
        tracer.kill()
    assert side.process.wait(TIMEOUT_S) == -signal.SIGKILL
