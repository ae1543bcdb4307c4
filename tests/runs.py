"""Runs of train.py as a user starts them: in a process group of their own, seen from outside."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parents[1]
SHM_DIR = Path("/dev/shm")
TIMEOUT_S = 90.0  # for what takes a few seconds on an idle machine
AFTERMATH_S = 5.0  # for what is to come true after a run has ended

_runs: list[subprocess.Popen[str]] = []  # those of `training`

# CartPole with batches so small that the first optimizer steps come at once.
TINY = (
    "--env=CartPole-v1",
    "--num-workers=1",
    "--envs-per-worker=8",
    "--rollout-length=8",
    "--batch-size=32",
    "--minibatches=2",
    "--epochs=1",
    "--precision=float32",
    "--report-seconds=0.2",
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended. `summary` is the JSON object of the last line on stdout, {} if none."""

    code: int
    stdout: str
    stderr: str
    summary: dict[str, Any]
    seconds: float  # from the call of `finish` to the end


def start_training(
    run_dir: Path | None,
    *flags: str,
    cwd: Path = ROOT,
    stdout: int | IO[str] = subprocess.PIPE,
    script: Path = ROOT / "train.py",
) -> subprocess.Popen[str]:
    """`train.py` with these flags, untuned unless they say so; the leader of a process group, like
    a job in a terminal."""
    where = [] if run_dir is None else [f"--run-dir={run_dir}"]
    return subprocess.Popen(
        [sys.executable, str(script), "--tune=off", *where, *flags],
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def training(
    run_dir: Path | None,
    *flags: str,
    cwd: Path = ROOT,
    stdout: int | IO[str] = subprocess.PIPE,
    script: Path = ROOT / "train.py",
) -> Iterator[subprocess.Popen[str]]:
    """`start_training`; when the block is left, every process of the run is ended for sure, and
    what the run said on stderr is shown if the test fails."""
    process = start_training(run_dir, *flags, cwd=cwd, stdout=stdout, script=script)
    _runs.append(process)
    try:
        yield process
    finally:
        _runs.remove(process)
        for member in group(process.pid):
            member.kill()
        _, stderr = process.communicate()
        print(stderr, file=sys.stderr)


def finish(process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> Ended:
    """Wait for the end of a run."""
    started_s = time.monotonic()
    stdout, stderr = process.communicate(timeout=timeout_s)
    seconds, stdout = time.monotonic() - started_s, stdout or ""  # it may go elsewhere
    last_line = stdout.splitlines()[-1] if stdout.strip() else ""
    summary = json.loads(last_line) if last_line.startswith("{") else {}
    return Ended(process.returncode, stdout, stderr, summary, seconds)


def run_training(run_dir: Path | None, *flags: str, timeout_s: float = TIMEOUT_S) -> Ended:
    """`train.py` with these flags from start to end."""
    with training(run_dir, *flags) as process:
        return finish(process, timeout_s)


def wait_for(predicate: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Return as soon as the predicate is true.

    Raises TimeoutError if it does not become so, or a run has ended meanwhile and it is not so
    soon afterwards.
    """
    deadline, why = time.monotonic() + timeout_s, f"within {timeout_s:g} s"
    living = [run for run in _runs if run.poll() is None]
    while not predicate():
        now = time.monotonic()
        if codes := [run.returncode for run in living if run.poll() is not None]:
            living, deadline = [], min(deadline, now + AFTERMATH_S)
            why = f"although the run has ended, with exit code {codes[0]}"
        if now > deadline:
            raise TimeoutError(f"not true {why}")
        time.sleep(0.02)


def hasten(pid: int) -> None:
    """Let a process that gives way to all have the time that it needs, on a busy machine too."""
    with suppress(OSError):  # it has just ended, or this is not allowed
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, pid, 0)
    with suppress(OSError):  # nor are there such groups everywhere
        Path(f"/proc/{pid}/autogroup").write_text("0")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl so far; a line that is being written is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def has_trained(run_dir: Path) -> bool:
    """Whether an optimizer step has been reported."""
    return bool((records := metrics(run_dir)) and records[-1]["learner_steps"])


def segments(pid: int) -> list[str]:
    """What the trainer `pid` has in /dev/shm, multiprocessing's files included."""
    return sorted(
        p.name for p in SHM_DIR.iterdir() if p.name.startswith((f"sfrl-{pid}-", f"pym-{pid}-"))
    )


def children(pid: int) -> list[psutil.Process]:
    """The living processes below `pid`, of all generations."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def group(pid: int) -> list[psutil.Process]:
    """The living processes of the run that `start_training` gave, also if the trainer is dead."""
    return [p for p in psutil.process_iter() if _lives_in_group(p, pid)]


def _lives_in_group(process: psutil.Process, group_id: int) -> bool:
    try:
        is_member = os.getpgid(process.pid) == group_id
        return is_member and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):  # it has ended since
        return False


def components(pid: int) -> dict[str, psutil.Process]:
    """The components that already carry their names, as `ps` shows them: {"rollout-0": ...}."""
    named = {}
    for child in children(pid):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:  # it has ended since
            continue
        if command.startswith("sfrl "):
            named[command.removeprefix("sfrl ").strip()] = child
    return named


def interrupt(process: subprocess.Popen[str], signum: signal.Signals = signal.SIGINT) -> None:
    """What a terminal does at Ctrl-C: the signal goes to the whole process group."""
    os.killpg(process.pid, signum)
