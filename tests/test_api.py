"""`sfrl.train`: in whatever program it is called, and with the same settings as the command."""

import dataclasses
import gc
import math
import multiprocessing
import runpy
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

import sfrl
from sfrl import api
from sfrl.api import only_run
from sfrl.commands import train as cli
from sfrl.records import checkpoint
from sfrl.records.checkpoint import CheckpointError, save_config
from sfrl.records.run_folder import RunFolderError, is_locked
from sfrl.run.process_crew import ProcessCrew
from sfrl.run.serial_crew import SerialCrew
from sfrl.run.trainer import Trainer
from sfrl.settings.algorithms import all_settings, load_config, type_problems
from sfrl.settings.synonyms import OF_PYTHON
from sfrl.settle import settle
from sfrl.tune.children import MeasureError, in_child
from tests.runs import ROOT, TIMEOUT_S, TINY, has_trained, segments, wait_for

gymnasium.register("Mine-v0", CartPoleEnv)
CALL = """
from sfrl import train

settings = dict(
    env="CartPole-v1", num_workers=1, envs_per_worker=8, rollout_length=8, batch_size=32,
    minibatches=2, epochs=1, precision="float32", report_seconds=0.2, tune="off",
    train_frames=300,
)
"""
# No guard: were it run once more, by a worker, "begun" would have another line.
SCRIPT = f"""{CALL}
import asyncio, pathlib, threading

with pathlib.Path("begun").open("a") as file:
    file.write("once\\n")
frames = []


def work(**more):
    frames.append(train(**settings, **more).env_frames)


async def work_in_a_loop():
    work(model="tests.faulty_encoder:Lazy", serial=True)


thread = threading.Thread(target=work, kwargs={{"run_dir": pathlib.Path("first")}})
thread.start()
thread.join()
asyncio.run(work_in_a_loop())
assert len(frames) == 2, frames
assert all(300 <= number < 50_000 for number in frames), frames
"""
OWN = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
from sfrl import train

gymnasium.register("Own-v0", CartPoleEnv, max_episode_steps=500)
"""
GUARD = "if __name__ == '__main__': "
CHILDREN = (
    "import multiprocessing\nif multiprocessing.parent_process(): "  # not where it is looked at
)
NET = "from tests.faulty_encoder import Lazy as Net\n"
IMPORTED = (
    "this module calls sfrl.train when it is imported: put the call under if __name__ == '__main__'"
)
INTERRUPTED = f"""{CALL}
settings.update(train_frames=0, lr_schedule="constant")
try:
    train(**settings, run_dir="first")
except KeyboardInterrupt:
    print("interrupted", flush=True)
train(**settings, run_dir="second", serial=True)
print("never")
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * TIMEOUT_S)


def test_a_script_needs_no_guard_and_trains_again_in_a_thread_and_within_an_event_loop():
    Path("script.py").write_text(SCRIPT)
    ended = run_python("script.py")
    assert ended.returncode == 0, ended.stderr
    assert Path("begun").read_text() == "once\n"
    assert ended.stderr.count("this is not the main thread") == 1
    [second] = Path("runs").iterdir()
    assert second.name.startswith("CartPole-v1-20")
    flags = [*TINY, "--tune=off", "--train-frames=300", f"--run-dir={Path('first').absolute()}"]
    saved = load_config(Path("first/config.json"))
    shutil.rmtree("first")
    assert saved == cli.parse(flags)


def test_a_signal_ends_the_run_in_order_and_then_does_what_it_does_in_the_program():
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-"], text=True, **pipes) as program:
        try:
            program.stdin.write(INTERRUPTED)  # which has no file that could be run once more
            program.stdin.close()
            for folder, signum in (("first", signal.SIGINT), ("second", signal.SIGTERM)):
                wait_for(lambda folder=folder: has_trained(Path(folder)))
                program.send_signal(signum)
            program.wait(TIMEOUT_S)
        finally:
            program.kill()
        lines = program.stdout.read().splitlines()
        assert program.returncode == -signal.SIGTERM, program.stderr.read()
    assert "interrupted" in lines
    assert "never" not in lines
    for folder in ("first", "second"):
        assert list(Path(folder, "checkpoints").glob("latest-*.pt"))
    assert not segments(program.pid)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"evn": "Pong"}, "unknown setting 'evn'; did you mean env"),
        ({"lr": 1e-3}, "unknown setting 'lr'; use learning_rate"),
        ({"n_steps": 8, "Render": True}, "unknown setting 'n_steps'; use rollout_length"),
        ({"n_envs": 8}, "use num_workers=N and envs_per_worker=K, which make N x K environments"),
        ({"Render": True}, "trained: sfrl enjoy --window, or --video=FILE.mp4"),
        ({"train_frames": 1e6 + 0.5}, "train_frames=1000000.5 must be of type int"),
        ({"train_frames": math.inf}, "train_frames=inf must be of type int"),
        ({"train_frames": "10m"}, "train_frames='10m' must be of type int"),
        ({"tune": np.float32(1)}, "tune=1.0 must be of type str"),
        ({"run_dir": None}, "run_dir=None must be of type str"),
        ({"config": Path("no.json")}, "no.json cannot be read as a config: No such file"),
        ({"env": "CartPole-v1", "frameskip": 4}, "frameskip=4 is for Atari games"),
        ({"env": "CartPole-v1", "gamma": 2.0, "loss": "ppo"}, "gamma=2.0 must lie"),
        ({"env": "__main__:Mine-v0"}, "env=__main__:Mine-v0 is registered in this program alone"),
        ({"env": "Mine-v0"}, "put it into a module, and name it as module:Mine-v0"),
        (
            {"env": "CartPole-v1", "env_kwargs": {"render_mode": {1}}},
            "env_kwargs={'render_mode': {1}} must hold numbers, texts, True, False, None, lists",
        ),
        (
            {"env": "CartPole-v1", "model": "__main__:Net"},
            "model=__main__:Net is defined in this program alone, which workers, processes of "
            "their own, do not run; put it into a module, and name it as module:Net",
        ),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(settings, text, tmp_path):
    with pytest.raises(sfrl.ConfigError) as refusal:
        sfrl.train(**settings)
    assert text in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_numbers_may_be_of_numpy_and_whole_ones_floats():
    sfrl.train(
        env="CartPole-v1",
        run_dir="run",
        serial=np.bool_(True),
        num_workers=np.int64(1),
        envs_per_worker=8.0,
        rollout_length=np.uint8(8),
        batch_size=32,
        minibatches=np.float32(2),
        train_frames=1e2,
        learning_rate=np.float32(0.001),
        gamma=np.float64(0.5),
        env_kwargs={"max_episode_steps": np.int64(50)},
    )
    saved = load_config(Path("run/config.json"))
    assert (saved.train_frames, saved.envs_per_worker, saved.minibatches) == (100, 8, 2)
    assert (saved.serial, saved.rollout_length, saved.gamma) == (True, 8, 0.5)
    assert saved.learning_rate == pytest.approx(0.001)
    assert not type_problems(dataclasses.asdict(saved), all_settings())  # 1.0 for 1 would be one


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ('env="own:Own-v0"', "env=own:Own-v0 could not be imported"),
        ('env="CartPole-v1", model="own:Net"', "model=own:Net"),
    ],
)
def test_a_script_that_a_run_imports_is_told_of_the_guard_that_it_needs(given, text):
    Path("own.py").write_text(f"{OWN}{NET if 'Net' in given else ''}train({given}, tune='off')")
    ended = run_python("own.py")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith(f"Error: {text}: {IMPORTED}")
    assert not Path("runs").exists()


def test_a_script_that_a_run_imports_trains_if_its_call_is_guarded():
    settings = 'settings | dict(env="own:Own-v0", run_dir="run")'
    Path("own.py").write_text(f"{CALL}{OWN}{GUARD}train(**({settings}))")
    ended = run_python("own.py")
    assert ended.returncode == 0, ended.stderr
    assert list(Path("run/checkpoints").iterdir())


def test_no_process_of_a_run_begins_another(capfd):
    Path("own.py").write_text(f"{OWN}{CHILDREN}train(env='own:Own-v0')")
    Path("script.py").write_text(f"{CALL}train(**settings | dict(env='own:Own-v0'))")
    ended = run_python("script.py")
    assert ended.stderr.endswith(f"\n{IMPORTED}\n")
    assert "WorkerError: rollout-0 (pid" in ended.stderr
    with pytest.raises(MeasureError):
        in_child(runpy.run_path, "own.py")
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"Error: {IMPORTED}")


def test_a_process_that_may_start_no_others_says_so(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(sfrl.ConfigError, match="this process may start none"):
        sfrl.train(env="Pong")


def test_a_run_that_could_not_begin_keeps_no_folder_locked():
    """Whoever keeps the error, as notebooks do, keeps all that it was raised from."""
    settings = {"env": "CartPole-v1", "run_dir": "run", "serial": True, "tune": "off"}
    config, spec = settle(settings)
    trainer = Trainer(config, spec=spec)
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/latest-000000000400.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RunFolderError, match="already holds a run") as of_new:
        trainer.run()
    assert not is_locked(Path("run"))
    save_config(config, Path("run"))
    with pytest.raises(CheckpointError, match="no checkpoint that can be read") as of_resumed:
        sfrl.train(run_dir="run", resume=True)
    assert not is_locked(Path("run"))
    del of_new, of_resumed


@pytest.mark.parametrize("crew_class", [SerialCrew, ProcessCrew])
def test_a_run_that_has_had_its_frames_ends_before_it_starts(crew_class, monkeypatch):
    tiny = {"env": "CartPole-v1", "run_dir": "run", "serial": True, "tune": "off"}
    before = sfrl.train(**tiny, train_frames=3000)
    monkeypatch.delattr(crew_class, "start")
    is_serial = crew_class is SerialCrew
    after = sfrl.train(run_dir="run", resume=True, train_frames=2000, serial=is_serial)
    assert after.env_frames == before.env_frames
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert "train_frames=2000 are reached; raise --train-frames to go on" in log
    assert load_config(Path("run/config.json")).train_frames == 3000, (
        "settings that have not been tried"
    )


def test_ctrl_c_while_a_run_is_made_ready_leaves_its_folder_unlocked(monkeypatch):
    tiny = {"env": "CartPole-v1", "run_dir": "run", "serial": True, "tune": "off"}
    sfrl.train(**tiny, train_frames=3000)
    load_latest = checkpoint.load_latest

    def interrupted(run_dir):
        signal.raise_signal(signal.SIGINT)
        return load_latest(run_dir)

    monkeypatch.setattr(checkpoint, "load_latest", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        sfrl.train(run_dir="run", resume=True)
    assert not is_locked(Path("run"))
    del kept


def test_a_serial_run_leaves_torch_and_the_table_of_files_as_they_were():
    before = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    torch.manual_seed(123)
    drawn_next = torch.rand(1, generator=torch.Generator().set_state(torch.get_rng_state()))
    try:
        sfrl.train(
            env="CartPole-v1",
            model="tests.tiny_encoder:Counting",
            system="a3c",
            updates="locked",
            serial=True,
            train_frames=3000,
        )
        assert torch.get_num_threads() == 3
        assert torch.rand(1) == drawn_next
    finally:
        torch.set_num_threads(before[0])
        torch.set_rng_state(before[1])
    gc.collect()
    assert [name for name in open_files() if name.endswith("-lock (deleted)")] == []


def open_files() -> list[str]:
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            links.append(str(link.readlink()))
    return links


def test_one_process_has_one_run_at_a_time():
    with only_run(), ThreadPoolExecutor() as threads:
        second = threads.submit(sfrl.train, env="CartPole-v1")
        with pytest.raises(RuntimeError, match="this process trains already"):
            second.result()


IGNORES_CHILDREN = f"""{CALL}
import signal, threading

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
train(**settings)
assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
errors = []


def work(**more):
    try:
        train(**settings, **more)
    except RuntimeError as error:
        errors.append(str(error))


def start(**more):
    thread = threading.Thread(target=work, kwargs=more)
    thread.start()
    thread.join()


start()
assert len(errors) == 1
start(serial=True)  # has no workers to wait for
print(*errors)
"""


IGNORES_AND_BECOMES = """
import os, signal, sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_the_end_of_children_is_noticed_in_a_program_that_ignores_it():
    """As some supervisors and servers do; what they start inherits it."""
    ended = run_python("-c", IGNORES_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert "did not stop within" not in ended.stderr
    assert ended.stdout.count("SIGCHLD is ignored in this process, so that nobody would le") == 1
    flags = [*TINY, "--tune=off", "--train-frames=300"]
    ended = run_python("-c", IGNORES_AND_BECOMES, str(ROOT / "train.py"), *flags)
    assert ended.returncode == 0, ended.stderr
    assert "did not stop within" not in ended.stderr


def test_workers_and_the_importing_program_are_spared_of_what_they_do_not_need():
    names = "{'torch', 'wandb', 'sfrl.settings.flags', 'sfrl.run.trainer'}"
    look = f"print(*sorted({names} & set(sys.modules)))"
    loaded = run_python(
        "-c", f"import sys, sfrl.workers.rollout_worker; {look}; import sfrl.api; {look}"
    )
    assert loaded.stdout.splitlines() == ["", "sfrl.run.trainer"]


def test_a_duration_may_be_a_text_as_in_flags():
    setting = all_settings()["video_every"]
    assert api._plain("10m", setting) == 600.0
    assert api._plain("ten", setting) == "ten", "which is refused by its type"
    assert OF_PYTHON["video"] == 'use video_every="10m", or afterwards enjoy.py'
