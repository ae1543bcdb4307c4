"""Environments with programs, forks, threads, alarms and logging of their own, in real runs."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import sfrl
from sfrl import envs
from sfrl.envs.logs import logging_to, own_logger
from sfrl.records import checkpoint
from sfrl.run.spawning import one_thread_each
from sfrl.run.trainer import INSISTENCE_S
from tests.guest_env import FACTS, PROGRAM
from tests.run.test_shutdown import (
    assert_nothing_is_left,
    assert_stopped_in_order,
    wait_until_trained,
)
from tests.runs import (
    TINY,
    children,
    components,
    finish,
    group,
    interrupt,
    metrics,
    training,
    wait_for,
)


def flags(name: str) -> list[str]:
    return [*TINY[1:], f"--env=tests.guest_env:{name}-v0"]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def programs(pid: int) -> list:
    return [p for p in group(pid) if p.cmdline() == PROGRAM]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--serial"]])
def test_an_environment_has_an_ordinary_process(tmp_path, monkeypatch, more):
    """Its programs can be terminated, its alarm comes; and a run to be stopped still is, in order.

    By SIGTERM: at Ctrl-C Python's forks print tracebacks, as they do everywhere.
    """
    monkeypatch.setenv(FACTS, str(tmp_path))
    run_dir = tmp_path / "run"
    with training(run_dir, *flags("Hosts"), *more) as process:
        wait_until_trained(process, run_dir)
        assert len(programs(process.pid)) == 8
        interrupt(process, signal.SIGTERM)
        ended = finish(process)
    assert ended.seconds < 8
    assert_stopped_in_order(ended, run_dir)
    assert "killing it" not in ended.stderr
    assert_nothing_is_left(process.pid)
    for path in tmp_path.glob("*.json"):
        facts = json.loads(path.read_text())
        assert facts["SigBlk"] == 0
        stop = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        assert not any(facts["SigIgn"] >> (signum - 1) & 1 for signum in stop)
        assert facts["alarm"]
        assert facts["threads"] == "1"
    log = (run_dir / "log.txt").read_text()
    assert "it has looked around" in log
    assert "in all detail" not in log


@pytest.mark.slow
def test_a_simulator_that_ctrl_c_ends_does_not_fail_the_run(tmp_path):
    """The signal reaches it as well as the trainer, and its environment fails at once."""
    run_dir = tmp_path / "run"
    with training(run_dir, *flags("Depends"), "--max-worker-restarts=0") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: programs(process.pid))  # one step has begun that ends then
        interrupt(process)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert (
        "CalledProcessError: Command '['sleep', '4242']' died with <Signals.SIGINT" in ended.stderr
    )
    assert "starting it again" not in ended.stderr
    assert checkpoint.latest_paths(run_dir)
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("by_ctrl_c", [False, True])
def test_a_killed_worker_leaves_no_program(tmp_path, monkeypatch, by_ctrl_c):
    """Nor any fork. Those of the others, and what runs in the background on purpose, stay."""
    monkeypatch.setenv(FACTS, str(tmp_path))
    run_dir = tmp_path / "run"
    more = ["--num-workers=2", "--envs-per-worker=4", "--batch-size=64"]
    with training(run_dir, *flags("HangsHosting"), *more) as process:
        wait_until_trained(process, run_dir)
        own = psutil.Process(process.pid).children()  # forks carry their worker's name as well
        workers = [p for p in own if "sfrl rollout" in " ".join(p.cmdline())]
        wait_for(lambda: all(len(worker.children()) == 8 for worker in workers))
        helpers = [worker.children() for worker in workers]
        daemons = [p for p in programs(process.pid) if p not in [*helpers[0], *helpers[1]]]
        assert len(daemons) == len(workers) == 2
        time.sleep(1.5)  # the trainer looks once a second
        if by_ctrl_c:  # the second one: the workers hang when they are to close
            process.send_signal(signal.SIGINT)
            time.sleep(INSISTENCE_S + 0.2)
            process.send_signal(signal.SIGINT)
            assert finish(process).code == 1
            wait_for(lambda: not any(is_alive(p) for p in [*helpers[0], *helpers[1]]), 5)
        else:
            workers[0].kill()
            wait_for(lambda: not any(is_alive(p) for p in helpers[0]), 5)
            assert all(is_alive(p) for p in helpers[1])
        assert all(is_alive(daemon) for daemon in daemons)


@pytest.mark.slow
def test_an_exit_in_an_environment_is_told_and_leaves_no_program(tmp_path):
    """Although a thread goes on, and although it has switched all logging off."""
    run_dir = tmp_path / "run"
    with training(run_dir, *flags("Exits"), "--max-worker-restarts=0") as process:
        ended = finish(process, timeout_s=60)  # before --env-timeout
        assert ended.code == 1
        assert "SystemExit: the game has ended" in ended.stderr
        assert "still heard" in (run_dir / "log.txt").read_text()
        wait_for(lambda: not programs(process.pid), timeout_s=5)


@pytest.mark.slow
def test_an_exit_in_a_serial_run_is_told(tmp_path):
    with training(tmp_path / "run", *flags("Exits"), "--serial") as process:
        ended = finish(process)
    assert ended.code == 1
    assert "train.py: serial run:\nTraceback" in ended.stderr
    assert "SystemExit: the game has ended" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--serial"]])
def test_logging_of_its_own_leaves_ours_alone(tmp_path, more):
    run_dir = tmp_path / "run"
    with training(run_dir, *flags("Reconfigures"), *more, "--train-frames=2000") as process:
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "last checkpoint: " in (run_dir / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--serial"]])
def test_a_server_that_its_constructor_forks_can_be_ended(tmp_path, more):
    """In the process that describes it as well, where it is made first."""
    env = [*flags("ForksAtInit"), "--env-timeout=20", "--train-frames=2000"]
    with training(tmp_path / "run", *env, *more) as process:
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--serial"]])
def test_a_fork_that_comes_back_is_no_second_worker(tmp_path, more):
    run_dir = tmp_path / "run"
    with training(run_dir, *flags("ForksBack"), "--debug-buffers", *more) as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: metrics(run_dir)[-1]["env_steps"] > 8 * 300)
        alive = [p for p in children(process.pid) if p.status() != psutil.STATUS_ZOMBIE]
        if more:
            assert not alive
        else:
            assert ["sfrl rollout-0" in " ".join(p.cmdline()) for p in alive].count(True) == 1
        interrupt(process)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    text = "a process that an environment forked has left the environment: "
    assert ended.stderr.count(text + "it returned") == 8
    assert ended.stderr.count(text + "Traceback") == 8
    assert "starting it again" not in ended.stderr


@pytest.mark.slow
def test_an_environment_that_closes_what_it_did_not_open_is_told(tmp_path):
    with training(tmp_path / "run", *flags("Closes"), "--max-worker-restarts=0") as process:
        wait_for(lambda: "rollout-0" in components(process.pid))
        ended = finish(process, timeout_s=60)
    assert ended.code == 1
    assert "Bad file descriptor" in ended.stderr
    assert_nothing_is_left(process.pid)


def test_a_process_gets_one_thread_unless_the_user_says_otherwise(monkeypatch):
    """numpy.dot's library, and OpenCV, as they see it in a process that starts then."""
    look = "import os, cv2; print(cv2.getNumThreads(), os.environ['OPENBLAS_NUM_THREADS'])"

    def seen() -> list[str]:
        with one_thread_each():
            return subprocess.check_output([sys.executable, "-c", look], text=True).split()

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        monkeypatch.delenv(name, raising=False)
    assert seen() == ["1", "1"]
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # which OpenBLAS reads as well
    assert seen() == ["2", "2"]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert seen() == ["2", "3"]


# --- logging ---


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_our_lines_come_from_info_on_and_others_from_warning_on():
    kept, ours, theirs = Kept(), own_logger("sfrl.test_guests"), logging.getLogger("their.library")
    with logging_to(kept):
        for logger in (ours, theirs):
            logger.info("%s, info", logger.name)
            logger.warning("%s, warning", logger.name)
    ours.warning("after")
    assert kept.texts == [
        "sfrl.test_guests, info",
        "sfrl.test_guests, warning",
        "their.library, warning",
    ]


SILENCED = """
import logging, logging.config
from sfrl.envs.logs import logging_to, own_logger
from tests.run.test_guests import Kept
kept, ours = Kept(), own_logger("sfrl.test_guests")
with logging_to(kept):
    logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL", "handlers": []}})
    logging.disable(logging.CRITICAL)
    ours.info("here")
print(kept.texts)
"""


def test_nobody_silences_us():
    text = subprocess.check_output([sys.executable, "-c", SILENCED], text=True)
    assert text == "['here']\n"


def test_every_module_has_a_logger_that_stays():
    for package in (envs, sfrl):
        for path in Path(package.__path__[0]).rglob("*.py"):
            if path.name != "logs.py":
                text = path.read_text(encoding="utf-8").replace('logging.getLogger("torch")', "")
                assert "logging.getLogger(" not in text, path
