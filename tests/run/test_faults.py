"""What a run survives, and how it ends where it cannot: real faults, seen from outside."""

import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from sfrl.commands import train as cli
from sfrl.records import checkpoint
from sfrl.run.trainer import STOP_TIMEOUT_S
from tests.run.test_shutdown import (
    COMPONENTS,
    assert_nothing_is_left,
    assert_stopped_in_order,
    wait_until_trained,
)
from tests.runs import (
    ROOT,
    SHM_DIR,
    TINY,
    components,
    finish,
    has_trained,
    interrupt,
    metrics,
    segments,
    training,
    wait_for,
)


def frames_per_s(run_dir) -> float:
    return metrics(run_dir)[-1]["frames_per_s"]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rollout_worker_that_is_killed_is_replaced_within_5_s(tmp_path, signum):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--num-workers=2", "--train-seconds=60") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: len(metrics(run_dir)) > 10)
        usual = max(record["frames_per_s"] for record in metrics(run_dir))
        victim = components(process.pid)["rollout-0"]
        victim.send_signal(signum)
        killed_s = time.monotonic()
        wait_for(lambda: metrics(run_dir)[-1]["worker_restarts"] == 1)
        known = len(metrics(run_dir))
        wait_for(lambda: any(r["frames_per_s"] > 0.5 * usual for r in metrics(run_dir)[known:]))
        wait_for(lambda: "rollout-0" in components(process.pid))  # has its name by now
        assert time.monotonic() - killed_s < 5
        wait_for(lambda: components(process.pid).get("rollout-0", victim).pid != victim.pid)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 0
    assert f"rollout-0 (pid {victim.pid}) was killed by {signum.name}; starting it" in ended.stderr
    assert metrics(run_dir)[-1]["discarded_steps"] <= 8 * 8  # what one slot of each split holds
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_a_death_is_noticed_although_a_helper_of_the_environment_lives(tmp_path):
    run_dir = tmp_path / "run"
    flags = [*TINY[1:], "--env=tests.faulty_env:LeavesAHelper-v0", "--envs-per-worker=4"]
    flags += ["--rollout-length=16", "--batch-size=32"]
    with training(run_dir, *flags) as process:
        wait_until_trained(process, run_dir)
        own = psutil.Process(process.pid).children()  # the helper carries the worker's name
        next(child for child in own if "sfrl rollout-0" in " ".join(child.cmdline())).kill()
        killed_s = time.monotonic()
        wait_for(lambda: metrics(run_dir)[-1]["worker_restarts"] == 1)
        assert time.monotonic() - killed_s < 5
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_a_failure_is_told_although_a_thread_of_the_environment_lives(tmp_path):
    flags = [*TINY[1:], "--env=tests.faulty_env:RaisesBesideAThread-v0", "--max-worker-restarts=0"]
    with training(tmp_path / "run", *flags) as process:
        wait_for(lambda: components(process.pid).keys() >= COMPONENTS)
        ended = finish(process, timeout_s=30)  # before --env-timeout
    assert ended.code == 1
    assert "RuntimeError: the pole broke" in ended.stderr


@pytest.mark.slow
def test_nan_ends_the_run_at_once_if_it_is_to(tmp_path):
    flags = [*TINY[1:], "--env=tests.faulty_env:GivesNaN-v0", "--on-nan=stop"]
    with training(tmp_path / "run", *flags) as process:
        ended = finish(process)
    assert ended.code == 1
    assert "NonFiniteError: GivesNaN-v0, env " in ended.stderr
    assert "NaN or infinity: reward nan" in ended.stderr
    assert "starting it again" not in ended.stderr


@pytest.mark.slow
def test_two_trainers_do_not_write_one_run(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--checkpoint-seconds=0.5") as process:
        wait_for(lambda: checkpoint.latest_paths(run_dir))
        with training(run_dir, "--resume") as second:
            ended = finish(second)
        assert ended.code == 2
        assert f"run_dir={run_dir} is in use by a run that still goes on" in ended.stderr
        process.send_signal(signal.SIGINT)
        assert finish(process).code == 0
    with training(run_dir, "--resume", "--train-seconds=6") as third:  # it is free again
        assert finish(third).code == 0


@pytest.mark.slow
def test_an_environment_that_hangs_is_named_and_its_worker_replaced(tmp_path):
    flags = [*TINY[1:], "--env=tests.faulty_env:Hangs-v0", "--env-timeout=1"]
    with training(tmp_path / "run", *flags, "--max-worker-restarts=1") as process:
        ended = finish(process)
    assert ended.code == 1
    text = "has been in a step of env 1 of its split 0, tests.faulty_env:Hangs-v0, for 1 s"
    assert ended.stderr.count(text) == 3  # the restart, and both in what ends the run
    assert "rollout-0 failed 2 times within an hour (max_worker_restarts=1)" in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--serial"]])
def test_an_environment_that_never_worked_ends_the_run_at_once(tmp_path, more):
    flags = [*TINY[1:], "--env=tests.faulty_env:RaisesAtStart-v0", *more]
    with training(tmp_path / "run", *flags) as process:
        ended = finish(process)
    assert ended.code == 1
    for text in (ended.stderr, (tmp_path / "run/log.txt").read_text(errors="strict")):
        assert "\nRuntimeError: there is no \\x1b[31mpole\n" in text
        assert "\x1b" not in text
    assert ended.stderr.count("Traceback") == 1
    assert f"train.py: {'serial run' if more else 'rollout-0'}" in ended.stderr
    assert "starting it again" not in ended.stderr


def test_a_learner_that_fails_in_a_serial_run_is_told(tmp_path):
    with training(tmp_path / "run", *TINY, "--serial", "--value-coef=1e38") as process:
        ended = finish(process)
    assert ended.code == 1
    assert "train.py: serial run:\nTraceback" in ended.stderr
    assert "LearnerError: 20 optimizer steps in a row" in ended.stderr


@pytest.mark.slow
def test_a_learner_that_fails_where_it_plays_ends_the_run_at_once(tmp_path):
    """No other process could learn from the same weights either."""
    flags = ["--env=CartPole-v1", "--system=hogwild", "--num-workers=2", "--value-coef=1e38"]
    with training(tmp_path / "run", *flags) as process:
        ended = finish(process)
    assert ended.code == 1
    assert "LearnerError: 20 optimizer steps in a row" in ended.stderr
    assert "starting it again" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "component"), [("HangsWhenLearning", "learner"), ("HangsWhenActing", "policy-0")]
)
def test_a_network_that_hangs_ends_the_run(tmp_path, encoder, component):
    run_dir = tmp_path / "run"
    flags = [*TINY, f"--model=tests.tiny_encoder:{encoder}", "--stall-timeout=2"]
    with training(run_dir, *flags) as process:
        wait_for(lambda: components(process.pid).keys() >= COMPONENTS)
        started_s = time.monotonic()
        ended = finish(process)
        assert time.monotonic() - started_s < 15
    assert ended.code == 1
    assert f"{component} (pid " in ended.stderr
    assert "has not got on for 2 s (stall_timeout=2" in ended.stderr
    assert "last checkpoint: " in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_a_gpu_without_memory_ends_the_run_with_a_remedy(tmp_path):
    flags = [*TINY, "--model=tests.tiny_encoder:FindsNoMemory"]
    with training(tmp_path / "run", *flags) as process:
        ended = finish(process)
    assert ended.code == 1
    assert (
        "the GPU has too little memory for this run: CUDA out of memory. Tried to" in ended.stderr
    )
    assert "Lower --batch-size=32 or --policy-batch-size=" in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_a_worker_that_cannot_be_started_anew_ends_the_run(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY) as process:
        wait_until_trained(process, run_dir)
        trainer = psutil.Process(process.pid)
        trainer.rlimit(psutil.RLIMIT_NOFILE, (trainer.num_fds(), 4096))  # not one more
        components(process.pid)["rollout-0"].kill()
        ended = finish(process)
    assert ended.code == 1
    assert "rollout-0 could not be started: [Errno 24] Too many open files" in ended.stderr
    assert checkpoint.latest_paths(run_dir)
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_an_environment_that_hangs_before_its_first_decision_ends_the_run(tmp_path):
    """In the random play with which all splits but the first begin."""
    flags = [*TINY[1:], "--env=tests.faulty_env:SixthHangs-v0", "--env-timeout=1"]
    flags += ["--num-splits=2", "--rollout-length=64", "--batch-size=256", "--slots-per-split=3"]
    with training(tmp_path / "run", *flags) as process:
        ended = finish(process)
    assert ended.code == 1
    assert "has been in a step of env 1 of its split 1, tests.faulty_env:Sixth" in ended.stderr
    assert "starting it again" not in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_an_output_that_takes_nothing_is_told_and_survived(tmp_path):
    run_dir = tmp_path / "run"
    with (
        open("/dev/full", "w") as full,
        training(run_dir, *TINY, "--train-frames=20000", stdout=full) as process,
    ):
        ended = finish(process)
    assert ended.code == 1
    assert "the display could not be written, and will be tried again: No space" in ended.stderr
    assert "train.py: the run's summary cannot be written: [Errno 28] No space" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert has_trained(run_dir)
    assert checkpoint.latest_paths(run_dir)
    assert_nothing_is_left(process.pid)


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"." * 4096)
    return reader, writer


def full_socket() -> tuple[int, int]:
    """As some supervisors give it. It cannot be opened again."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with suppress(BlockingIOError):
        while writer.send(b"." * 4096):
            pass
    writer.setblocking(True)
    return reader.detach(), writer.detach()


@pytest.mark.slow
@pytest.mark.parametrize("make_full", [full_pipe, full_socket])
def test_a_reader_that_looks_away_stops_nothing_but_the_last_line(tmp_path, make_full):
    """Nor an environment that prints, nor the start of another worker."""
    run_dir = tmp_path / "run"
    reader, writer = make_full()
    prints = [*TINY[1:], "--env=tests.guest_env:Prints-v0"]
    with open(writer, "wb") as full, training(run_dir, *prints, stdout=full) as process:
        assert os.get_blocking(writer), "who shares it is not disturbed"
        wait_until_trained(process, run_dir)
        components(process.pid)["rollout-0"].kill()
        wait_for(lambda: metrics(run_dir)[-1]["worker_restarts"] == 1)
        steps = metrics(run_dir)[-1]["learner_steps"]
        wait_for(lambda: metrics(run_dir)[-1]["learner_steps"] > steps + 10)
        process.send_signal(signal.SIGINT)
        log = run_dir / "log.txt"
        wait_for(lambda: "last checkpoint: " in log.read_text())
        assert process.poll() is None  # it waits for somebody who reads the summary
        full.close()
        with open(reader) as output:
            *lines, last = output.read().splitlines()
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert json.loads(last)["run_dir"] == str(run_dir)
    assert "the program's line" in lines
    assert ended.stderr.count("starting it again") == 1
    assert checkpoint.latest_paths(run_dir)


@pytest.mark.slow
def test_a_summary_that_nobody_reads_is_given_up_at_a_signal(tmp_path):
    run_dir = tmp_path / "run"
    _, writer = full_pipe()
    with (
        open(writer, "wb") as full,
        training(run_dir, *TINY, "--train-frames=2000", stdout=full) as process,
    ):
        log = run_dir / "log.txt"
        wait_for(lambda: log.exists() and "last checkpoint: " in log.read_text())
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        ended = finish(process, timeout_s=10)
    assert ended.code == 0, ended.stderr


@pytest.mark.slow
def test_closed_outputs_are_no_other_files(tmp_path):
    """`>&- 2>&-`, as some supervisors start their services."""
    run_dir = tmp_path / "run"
    arguments = [sys.executable, "train.py", *TINY, "--tune=off", f"--run-dir={run_dir}"]
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *arguments, "--train-frames=2000"]
    assert subprocess.run(closed, cwd=ROOT, timeout=90).returncode == 0
    lines = (run_dir / "log.txt").read_text().splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert line[:2] == "20", "dates alone, and none of what is printed"
    assert len(metrics(run_dir)) >= 1


@pytest.mark.slow
def test_a_log_is_in_utf_8_wherever_it_is_written(tmp_path, monkeypatch):
    run_dir = tmp_path / "größe"
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    with training(run_dir, *TINY, "--train-seconds=0.1") as process:
        ended = finish(process)
    assert ended.code == 0
    assert "Logging error" not in ended.stderr
    assert f"training CartPole-v1 in {run_dir}\n" in (run_dir / "log.txt").read_text("utf-8")


@pytest.mark.slow
def test_processes_that_are_stopped_go_on_where_they_were(tmp_path):
    """Each in turn, the trainer as well; longer than all timeouts, which do not count it."""
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--env-timeout=1", "--stall-timeout=1") as process:
        wait_until_trained(process, run_dir)
        for victim in [*components(process.pid).values(), psutil.Process(process.pid)]:
            victim.suspend()
            time.sleep(3)
            victim.resume()
            steps = metrics(run_dir)[-1]["learner_steps"]
            wait_for(lambda steps=steps: metrics(run_dir)[-1]["learner_steps"] > steps + 10)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert metrics(run_dir)[-1]["worker_restarts"] == 0
    assert checkpoint.latest_paths(run_dir)


@pytest.mark.slow
def test_what_a_stopped_process_has_locked_the_others_wait_for(tmp_path):
    """This one has the lock for it: a signal seldom meets the moment in which it has it itself."""
    run_dir = tmp_path / "run"
    flags = ["--env=CartPole-v1", "--system=a3c", "--updates=locked", "--num-workers=2"]
    timeouts = ["--env-timeout=3", "--stall-timeout=3"]
    with training(run_dir, *flags, *timeouts, "--report-seconds=0.2") as process:
        wait_until_trained(process, run_dir)
        [folder] = segments(process.pid)
        [path] = (SHM_DIR / folder).glob("*-updates-lock")
        components(process.pid)["rollout-1"].suspend()
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            time.sleep(5)
        process.send_signal(signal.SIGINT)  # the stopped one then ends as well
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert "starting it again" not in ended.stderr
    assert "did not stop" not in ended.stderr
    assert checkpoint.latest_paths(run_dir)


JUMPING_CLOCK = """
import random, time
right = time.time
time.time = lambda: right() + random.choice([-3600.0, 0.0, 3600.0])
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Python's, by an hour, back and forth, in every process."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_dir = tmp_path / "run"
    timeouts = ["--env-timeout=2", "--stall-timeout=2"]
    started_s = time.monotonic()
    with training(run_dir, *TINY, *timeouts, "--train-seconds=1200") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: metrics(run_dir)[-1]["time_s"] - metrics(run_dir)[0]["time_s"] > 5)
        interrupt(process)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    records = metrics(run_dir)
    times_s = [record["time_s"] for record in records]
    assert times_s == sorted(times_s)
    assert 5 < times_s[-1] < time.monotonic() - started_s
    assert all((record["frames_per_s"] or 0) >= 0 for record in records)
    assert records[-1]["worker_restarts"] == 0


@contextmanager
def no_room(*processes):
    """To these processes the disk is full: the kernel lets no file of theirs grow beyond 4 kB."""
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    yield
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_a_full_disk_is_told_and_survived(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--checkpoint-seconds=0.5") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: checkpoint.latest_paths(run_dir))
        learner = components(process.pid)["learner"]
        trainer = psutil.Process(process.pid)
        with no_room(learner, trainer):
            wait_for(lambda: not list(run_dir.glob("checkpoints/*.tmp")))  # one just being written
            kept = checkpoint.latest_paths(run_dir)
            known = len(metrics(run_dir))
            time.sleep(3)
            assert checkpoint.latest_paths(run_dir) == kept
            assert checkpoint.load_latest(run_dir).path == kept[0]
            assert len(metrics(run_dir)) <= known + 1
        wait_for(lambda: checkpoint.latest_paths(run_dir)[0] != kept[0])
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert (
        "the checkpoint could not be written, and will be tried again: File too large"
        in ended.stderr
    )
    assert "metrics could not be written, and will be tried again: File too large" in ended.stderr
    records = metrics(run_dir)
    assert records[-1]["write_failures"] > 5
    times = [record["time_s"] for record in records]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) < 2, "records of the time without room were kept"


@pytest.mark.slow
@pytest.mark.parametrize("num_left", [0, 1])
def test_a_disk_that_is_full_at_the_end_fails_the_run_and_what_is_left_is_named(tmp_path, num_left):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, f"--checkpoint-seconds={0.5 if num_left else 600}") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: len(checkpoint.latest_paths(run_dir)) >= num_left)
        reason = "the checkpoint could not be written, and will be tried again: File too large"
        log = run_dir / "log.txt"
        components(process.pid)["learner"].rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
        wait_for(lambda: not num_left or reason in log.read_text())
        left = checkpoint.latest_paths(run_dir)[:1]
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 1
    assert bool(left) == bool(num_left)
    name = left[0] if left else "none"
    text = f"the last checkpoint was not written (File too large); what is left is {name}\n"
    assert ended.stderr.count(text) == 2, "by the log and by the program"
    assert text in log.read_text()
    assert "the checkpoint could not be written: File too large" in ended.stderr, "told again"
    assert f"last checkpoint: {name}\n" in ended.stderr
    assert "had not begun" not in ended.stderr
    assert ended.summary == {}
    assert checkpoint.latest_paths(run_dir)[:1] == left
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--serial"]])
def test_a_best_checkpoint_that_cannot_be_written_at_the_end_fails_the_run(tmp_path, more):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, *more) as process:
        wait_for(lambda: metrics(run_dir) and metrics(run_dir)[-1]["episodes"] > 100)
        (run_dir / "checkpoints" / "best.pt").mkdir(parents=True)  # in its way
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 1
    [left] = checkpoint.latest_paths(run_dir)
    text = f"best.pt was not written (Is a directory); what is left is {left}, and no best.pt\n"
    assert ended.stderr.count(text) == 2, "by the log and by the program"
    assert "best.pt could not be written: Is a directory" in ended.stderr
    assert ended.summary == {}
    assert_nothing_is_left(process.pid)


SLOW_DISK = """
import os, time
sync = os.fsync
def slow_sync(fd):
    if "latest-" in os.readlink(f"/proc/self/fd/{fd}") and os.path.exists("FLAG"):
        time.sleep(SECONDS)
    sync(fd)
os.fsync = slow_sync
"""


@pytest.fixture
def slow_disk(tmp_path, monkeypatch):
    """Lets checkpoints take so many seconds to reach the disk, once the file it gives is there.

    Their writer sleeps meanwhile, as it seems to where a file system is a program (FUSE).
    """

    def make(seconds: float) -> Path:
        flag = tmp_path / "slow"
        text = SLOW_DISK.replace("SECONDS", str(seconds)).replace("FLAG", str(flag))
        (tmp_path / "sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return flag

    return make


@pytest.mark.slow
def test_the_last_checkpoint_takes_as_long_as_the_disk(tmp_path, slow_disk):
    flag = slow_disk(STOP_TIMEOUT_S + 3)
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--stall-timeout=2") as process:
        wait_until_trained(process, run_dir)
        flag.touch()
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
    assert_stopped_in_order(ended, run_dir)
    assert ended.seconds > STOP_TIMEOUT_S + 3
    assert "the last checkpoint is being written, for 2 s so far (0.1 MiB)" in ended.stderr


@pytest.mark.slow
def test_a_disk_that_takes_for_ever_ends_no_run_but_a_second_ctrl_c_does(tmp_path, slow_disk):
    flag = slow_disk(600)
    run_dir = tmp_path / "run"
    flags = ["--checkpoint-seconds=0.2", "--stall-timeout=1"]
    with training(run_dir, *TINY, *flags) as process:
        wait_until_trained(process, run_dir)
        flag.touch()
        wait_for(lambda: list(run_dir.glob("checkpoints/*.tmp")))
        known = len(metrics(run_dir))
        wait_for(lambda: len(metrics(run_dir)) > known + 15)  # thrice the timeout
        process.send_signal(signal.SIGINT)
        log = run_dir / "log.txt"
        wait_for(lambda: "a second Ctrl-C gives it up" in log.read_text())
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.seconds < 5
    assert ended.code == 1
    [left, *_] = checkpoint.latest_paths(run_dir)
    assert f"the last checkpoint was not written; what is left is {left}\n" in ended.stderr
    assert "had not begun" not in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_seconds", [0.2, 600])
def test_a_serial_run_tells_of_a_slow_disk_and_gives_it_up_as_well(
    tmp_path, slow_disk, checkpoint_seconds
):
    """Whether it saves when Ctrl-C comes, or begins to then."""
    flag = slow_disk(600)
    run_dir = tmp_path / "run"
    flags = [f"--checkpoint-seconds={checkpoint_seconds}", "--serial"]
    with training(run_dir, *TINY, *flags) as process:
        wait_until_trained(process, run_dir)
        flag.touch()
        wait_for(lambda: checkpoint_seconds > 1 or list(run_dir.glob("checkpoints/*.tmp")))
        process.send_signal(signal.SIGINT)
        log = run_dir / "log.txt"
        wait_for(lambda: "a second Ctrl-C gives it up" in log.read_text())
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.seconds < 5
    assert ended.code == 1
    left = next(iter(checkpoint.latest_paths(run_dir)), "none")
    assert f"the last checkpoint was not written; what is left is {left}\n" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert_nothing_is_left(process.pid)


@pytest.mark.slow
def test_a_run_folder_that_is_deleted_comes_back(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY, "--checkpoint-seconds=0.5") as process:
        wait_until_trained(process, run_dir)
        wait_for(lambda: checkpoint.latest_paths(run_dir))
        settings, known = (run_dir / "config.json").read_text(), metrics(run_dir)
        shutil.move(run_dir, tmp_path / "deleted")  # in one step: then nothing is written meanwhile
        shutil.rmtree(tmp_path / "deleted")
        wait_for(lambda: checkpoint.latest_paths(run_dir) and (run_dir / "config.json").exists())
        assert (
            cli.main([f"--run-dir={run_dir}", "--resume"], "train.py") == cli.EXIT_USAGE
        )  # it is locked
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert_stopped_in_order(ended, run_dir)
    assert (run_dir / "config.json").read_text() == settings
    assert metrics(run_dir)[: len(known)] == known
    log = (run_dir / "log.txt").read_text()
    assert f"training CartPole-v1 in {run_dir}\n" in log, "the lines of before"
    assert f"{run_dir} was deleted or moved; it has been made again" in log
    frames = ended.summary["env_frames"]
    with training(run_dir, "--resume", f"--train-frames={frames + 100}") as process:
        ended = finish(process)
    assert_stopped_in_order(ended, run_dir)


@pytest.mark.slow
def test_a_run_whose_folder_is_another_runs_by_now_ends_and_leaves_it_alone(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY) as first:
        wait_until_trained(first, run_dir)
        first.send_signal(signal.SIGSTOP)
        shutil.rmtree(run_dir)
        with training(run_dir, *TINY) as second:
            wait_until_trained(second, run_dir)
            first.send_signal(signal.SIGCONT)
            ended = finish(first)
            assert ended.code == 1
            assert f"train.py: run_dir={run_dir} is in use by a run that still" in ended.stderr
            assert not checkpoint.latest_paths(run_dir)
            second.send_signal(signal.SIGINT)
            assert_stopped_in_order(finish(second), run_dir)
    assert_nothing_is_left(first.pid)


@pytest.mark.slow
def test_a_run_whose_folder_another_run_has_had_leaves_all_its_files_alone(tmp_path):
    run_dir = tmp_path / "run"
    with training(run_dir, *TINY) as first:
        wait_until_trained(first, run_dir)
        first.send_signal(signal.SIGSTOP)
        shutil.rmtree(run_dir)
        with training(run_dir, *TINY, "--train-frames=2000") as second:
            assert finish(second).code == 0
        files = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
        first.send_signal(signal.SIGCONT)
        ended = finish(first)
    assert ended.code == 1
    assert f"run_dir={run_dir} was deleted, and holds another run by now" in ended.stderr
    assert files == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


FAILS_AT_THE_END = """
import sys
from sfrl.run.trainer import Trainer

def fail(*_, **__):
    raise ArithmeticError("a bug")

if __name__ == "__main__":
    Trainer._request_checkpoint = fail
    from sfrl.commands.train import main
    sys.exit(main(sys.argv[1:], "train.py"))
"""


@pytest.mark.slow
def test_a_fault_of_the_trainer_at_the_end_leaves_no_worker_and_fails_the_run(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script, run_dir = tmp_path / "fails.py", tmp_path / "run"
    script.write_text(FAILS_AT_THE_END)
    with training(run_dir, *TINY, "--train-frames=2000", script=script) as process:
        ended = finish(process)
    assert ended.code == 1
    assert "ArithmeticError: a bug" in ended.stderr
    assert_nothing_is_left(process.pid)
