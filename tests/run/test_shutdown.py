"""However a run ends: the right exit code, a checkpoint, and nothing left behind."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import sfrl
from sfrl.ipc.topology import Role
from sfrl.records import checkpoint
from sfrl.run.process_crew import ProcessCrew
from sfrl.run.trainer import STOP_TIMEOUT_S
from tests.runs import (
    TINY,
    Ended,
    components,
    finish,
    group,
    has_trained,
    interrupt,
    metrics,
    segments,
    training,
    wait_for,
)

COMPONENTS = {"learner", "policy-0", "rollout-0"}


def wait_until_trained(process: subprocess.Popen[str], run_dir: Path) -> None:
    wait_for(lambda: has_trained(run_dir) or process.poll() is not None)
    assert process.poll() is None, process.communicate()


def assert_nothing_is_left(pid: int) -> None:
    """Processes of multiprocessing's own end a moment after the trainer."""
    wait_for(lambda: not group(pid), timeout_s=5)
    assert not segments(pid)


def assert_stopped_in_order(ended: Ended, run_dir: Path) -> None:
    """Exit code 0, the summary, and a checkpoint of all that was done."""
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    state = checkpoint.load_latest(run_dir).state
    assert state["counters"]["learner_steps"] == metrics(run_dir)[-1]["learner_steps"] > 0
    assert ended.summary["run_dir"] == str(run_dir)
    assert ended.summary["env_frames"] >= state["counters"]["env_frames"]


@pytest.mark.slow
def test_a_finished_run_leaves_its_folder_its_summary_and_nothing_else(tmp_path):
    run_dir = tmp_path / "run"
    # As few slots as may be: a training batch takes all there are.
    flags = (*TINY, "--slots-per-split=1", "--train-frames=6000", "--gamma=0.98")
    with training(run_dir, *flags) as process:
        wait_for(lambda: components(process.pid).keys() >= COMPONENTS)
        wait_until_trained(process, run_dir)
        maps = {name: _mapped_files(p.pid) for name, p in components(process.pid).items()}
        maps["trainer"] = _mapped_files(process.pid)
        ended = finish(process)
    assert_stopped_in_order(ended, run_dir)
    assert_nothing_is_left(process.pid)

    assert ended.summary.keys() == {
        "env_frames",
        "env_steps",
        "seconds",
        "frames_per_s",
        "episodes",
        "episode_return_mean",
        "run_dir",
    }
    assert ended.summary["env_frames"] == ended.summary["env_steps"] >= 6000
    assert ended.summary["episodes"] > 0
    assert 8 < ended.summary["episode_return_mean"] < 500

    names = {path.name.split(".")[0] for path in run_dir.iterdir()}
    assert names == {"config", "metrics", "events", "log", "checkpoints"}
    assert "train_frames=6000 are reached" in (run_dir / "log.txt").read_text()
    settings = json.loads((run_dir / "config.json").read_text())
    [start] = settings.pop("starts")
    assert (start["env_frames"], start["version"]) == (0, sfrl.__version__)
    assert settings == checkpoint.load_latest(run_dir).state["config"]
    assert (settings["gamma"], settings["model"]) == (0.98, "norm_mlp")

    # Start-up time and memory: these two do without torch.
    assert maps.keys() == {*COMPONENTS, "trainer"}
    assert {name for name, files in maps.items() if "libtorch" in files} == {"learner", "policy-0"}


def _mapped_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.slow
def test_a_signal_ends_its_run_with_a_checkpoint_and_disturbs_no_other(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with training(first, *TINY) as ctrl_c, training(second, *TINY) as neighbour:
        wait_until_trained(ctrl_c, first)
        wait_until_trained(neighbour, second)
        for _ in range(3):  # as `timeout -s INT` does, to the process and to its group: one wish
            interrupt(ctrl_c)
            time.sleep(0.01)
        ended = finish(ctrl_c)
        assert ended.seconds < 10
        assert_stopped_in_order(ended, first)
        assert_nothing_is_left(ctrl_c.pid)

        steps = metrics(second)[-1]["learner_steps"]
        wait_for(lambda: metrics(second)[-1]["learner_steps"] > steps + 10)
        neighbour.send_signal(signal.SIGTERM)  # to the trainer alone, as `kill` does
        ended = finish(neighbour)
        assert ended.seconds < 10
        assert_stopped_in_order(ended, second)
        assert_nothing_is_left(neighbour.pid)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_ends_the_run_with_a_checkpoint(tmp_path, signum):
    """SIGTERM from a supervisor, SIGHUP from a terminal that was closed."""
    with training(tmp_path / "run", *TINY) as process:
        wait_until_trained(process, tmp_path / "run")
        interrupt(process, signum)
        ended = finish(process)
    assert ended.seconds < 10
    assert_stopped_in_order(ended, tmp_path / "run")
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.05, 0.3, 1, 2, 3])
def test_ctrl_c_during_start_up_ends_it_quietly(tmp_path, delay_s):
    with training(tmp_path / "run", *TINY) as process:
        time.sleep(delay_s)
        interrupt(process)
        ended = finish(process)
    assert_nothing_is_left(process.pid)
    assert ended.seconds < 10
    # Before train.py's first line the interpreter answers, in its own way.
    if ended.code != 0 and delay_s < 0.1:
        assert "KeyboardInterrupt" in ended.stderr or ended.code == -signal.SIGINT
        assert "train.py" not in ended.stderr
    else:
        assert ended.code == 0, ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("component", ["learner", "policy-0"])
def test_a_killed_network_ends_the_run_with_its_name(tmp_path, component):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--checkpoint-seconds=0.5") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: checkpoint.latest_paths(run_dir))
        steps = metrics(run_dir)[-1]["learner_steps"]
        victim = components(process.pid)[component]
        victim.send_signal(signal.SIGKILL)
        ended = finish(process)
    assert ended.seconds < 10
    assert ended.code == 1
    assert f"{component} (pid {victim.pid}) was killed by SIGKILL" in ended.stderr
    assert_nothing_is_left(process.pid)
    state, path = checkpoint.load_latest(run_dir)
    assert f"last checkpoint: {path}\n" in ended.stderr
    if component != "learner":  # which else has written one more
        assert state["counters"]["learner_steps"] >= steps


@pytest.mark.slow
def test_an_exception_in_a_worker_ends_the_run_with_its_traceback(tmp_path):
    flags = [*TINY[1:], "--env=tests.faulty_env:Raises-v0", "--max-worker-restarts=1"]
    with training(tmp_path / "run", *flags) as process:
        ended = finish(process)
    assert ended.code == 1
    assert "train.py: rollout-0 failed 2 times within an hour (max_worker_restarts" in ended.stderr
    assert "rollout-0 (pid " in ended.stderr
    assert "exited with 1:\nTraceback (most recent call last):\n" in ended.stderr
    assert 'raise RuntimeError("the pole broke")\nRuntimeError: the pole broke\n' in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_a_killed_trainer_takes_its_workers_along_and_the_next_start_sweeps_up(tmp_path):
    with training(tmp_path / "run", *TINY) as process:
        wait_for(lambda: components(process.pid).keys() >= COMPONENTS)
        wait_until_trained(process, tmp_path / "run")
        process.kill()
        wait_for(lambda: not group(process.pid), timeout_s=5)

    # Any start will do, also that of another test: this one sweeps, and then finds too little room.
    with training(tmp_path / "next", *TINY, "--rnn-size=1000000000") as following:
        ended = finish(following)
    assert ended.code == 2
    assert not segments(process.pid)


@pytest.mark.slow
def test_a_rollout_worker_that_dies_while_the_run_stops_does_not_fail_it(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY[1:], "--env=tests.faulty_env:HangsAtClose-v0") as process:
        wait_until_trained(process, run_dir)
        worker = components(process.pid)["rollout-0"]
        interrupt(process)
        wait_for(lambda: components(process.pid).keys() == {"rollout-0"})  # it alone hangs
        worker.kill()
        ended = finish(process)
    assert_stopped_in_order(ended, run_dir)
    text = f"rollout-0 (pid {worker.pid}) was killed by SIGKILL, while the run was stopping"
    assert text in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "text"),
    [([], "was killed by SIGKILL"), (["--serial"], "serial run: it was given up by a second")],
)
def test_a_second_ctrl_c_kills_at_once(tmp_path, more, text):
    run_dir = tmp_path / "run"
    flags = [*TINY[1:], "--env=tests.faulty_env:HangsAtClose-v0", *more]
    with training(run_dir, *flags) as process:
        wait_until_trained(process, run_dir)
        seconds = seconds_of_impatience(process)
        ended = finish(process)
    assert seconds < STOP_TIMEOUT_S - 2
    assert ended.code == 1
    assert "rollout-0" in ended.stderr or more
    assert text in ended.stderr
    assert_nothing_is_left(process.pid)


def test_ctrl_c_gives_up_what_hangs_before_the_start(tmp_path):
    flags = [*TINY[1:], "--env=tests.faulty_env:HangsAtStart-v0"]
    with training(tmp_path / "run", *flags, cwd=tmp_path) as process:
        wait_for((tmp_path / "hanging").exists)
        interrupt(process)
        ended = finish(process)
    assert ended.seconds < 5
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "")
    assert_nothing_is_left(process.pid)


def seconds_of_impatience(process: subprocess.Popen[str]) -> float:
    """One Ctrl-C after the other, until the run has ended."""
    started_s = time.monotonic()

    def has_ended() -> bool:
        if process.poll() is not None:
            return True
        interrupt(process)
        time.sleep(0.2)
        return False

    wait_for(has_ended, timeout_s=20)
    return time.monotonic() - started_s


def closing_body(*_: object) -> None:
    """What an environment may do that turns its process into a daemon."""
    os.closerange(3, 1024)
    time.sleep(60)


def ending_body(*_: object) -> None:
    pass


def test_a_worker_that_has_closed_all_files_is_stopped_in_time(make_shared, caplog):
    """Its sentinel tells that it has ended, and it has not."""
    kinds = {"rollout": closing_body, "policy": ending_body, "learner": ending_body}
    crew = ProcessCrew(make_shared(env="CartPole-v1", frameskip=1, num_workers=1), kinds)
    crew.start(None)
    process = psutil.Process(crew.pids[Role("rollout", 0)])
    wait_for(lambda: len(process.open_files()) == 0 and process.num_fds() <= 3)
    begun_s = time.monotonic()
    assert crew.stop(1.0) == []
    assert time.monotonic() - begun_s < 10
    assert "rollout-0 did not stop within 1 s; killing it" in caplog.text
    assert not process.is_running()
