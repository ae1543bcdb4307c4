"""What Sample Factory 2.1.1 does when something goes wrong, for docs/reliability.md.

    python -m benchmarks.sample_factory_faults
    python -m benchmarks.sample_factory_faults --faults learner-killed nan-reward --seconds=60

Each fault is brought about in a run of CartPole of its own (asynchronous, 2 workers of 16
environments) once that has trained for a while, or from the start; then the run is watched for
`--seconds`. What is printed: frames/s before and in the last third of that time, what became of
its processes, and what it logged and does not log in a run without faults.
"""

import fcntl
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import tyro

from benchmarks.runs import Point
from benchmarks.sample_factory import LOG_NAME, read_log, ready_python

PROGRAM = Path(__file__).with_name("sample_factory_cartpole.py")
FLAGS = (
    *("--experiment=run", "--use_rnn=False", "--recurrence=1", "--with_vtrace=False"),
    *("--async_rl=True", "--num_workers=2", "--num_envs_per_worker=16", "--worker_num_splits=2"),
    *("--rollout=32", "--batch_size=512", "--num_epochs=1", "--num_batches_per_epoch=1"),
    *("--train_for_env_steps=10000000000", "--save_every_sec=5", "--device=cpu"),
)
CARTPOLE = ("--env=cartpole",)
ROLLOUT, POLICY, LEARNER = "ROLLOUT worker 0", "InferenceWorker_p0-w0", "LearnerWorker_p0"
START_S = 40.0  # until a fault strikes; half of it is start-up
ODD = re.compile(
    r"\b(error|exception|traceback|warning|no heartbeat|lack of|stopping training|died|killed)",
    re.I,
)
STAMP = re.compile(r"\x1b\[[\d;]*m|\[[\d-]+ [\d:]+,\d+\]\[\d+\]\s*")  # colors, time and process


class Run:
    """A run in a folder and a session of its own."""

    def __init__(self, folder: Path, flags: tuple[str, ...] = (), **popen: Any) -> None:
        self.folder, self.fault_file = folder, folder / "fault"
        self.output = folder / "output.txt"
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                # -P: else `sample_factory` would be the file beside it.
                [ready_python(), "-P", PROGRAM, f"--train_dir={folder}", *FLAGS, *flags],
                env=os.environ | {"FAULT_FILE": str(self.fault_file)},
                cwd=folder,
                start_new_session=True,
                **{"stdout": output, "stderr": subprocess.STDOUT, **popen},
            )

    def role(self, name: str) -> psutil.Process:
        """By what it prints of itself at its start."""
        output = self.output.read_text()
        match = re.search(rf"{name}\tpid (\d+)", output)
        if match is None:
            raise RuntimeError(f"{name} is not in the output, which ends:\n{output[-2000:]}")
        return psutil.Process(int(match[1]))

    def log(self) -> str:
        path = self.folder / "run" / LOG_NAME
        return path.read_text() if path.exists() else ""

    def points(self) -> list[Point]:
        return read_log(self.folder / "run" / LOG_NAME) if self.log() else []

    def processes(self) -> list[psutil.Process]:
        """All that are alive, whoever their parent is."""
        found = []
        for process in psutil.process_iter(["status"]):
            try:
                is_member = os.getsid(process.pid) == self.process.pid
            except ProcessLookupError:
                continue
            if is_member and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def strike_env(self, fault: str) -> None:
        unfinished = self.fault_file.with_suffix(".new")
        unfinished.write_text(fault)
        unfinished.rename(self.fault_file)

    def end(self) -> None:
        for process in self.processes():
            process.kill()
        self.process.wait()


def send(role: str, signum: signal.Signals = signal.SIGKILL) -> Callable[[Run], None]:
    return lambda run: run.role(role).send_signal(signum)


def in_env(fault: str) -> Callable[[Run], None]:
    return lambda run: run.strike_env(fault)


def fill_disk(run: Run) -> None:
    """From now on the learner, who saves, cannot write a file beyond its first 4 kB."""
    run.role(LEARNER).rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))


def stop_all(run: Run) -> None:
    for process in run.processes():
        process.suspend()
    time.sleep(20)
    for process in run.processes():
        process.resume()


def start_another(run: Run) -> None:
    """In the same folder, with the same name."""
    another = Run(run.folder, CARTPOLE)
    time.sleep(START_S)
    state = "runs, too" if another.process.poll() is None else "has ended"
    print(f"  after {START_S:.0f} s the second one {state}")
    another.end()


def few_files() -> dict[str, Any]:
    return {"preexec_fn": partial(resource.setrlimit, resource.RLIMIT_NOFILE, (32, 32))}


def small_pipe() -> dict[str, Any]:
    """That nobody reads."""
    _, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return {"stdout": writer}


@dataclass(frozen=True)
class Fault:
    strike: Callable[[Run], object] = lambda _: None
    flags: tuple[str, ...] = CARTPOLE
    popen: Callable[[], dict[str, Any]] = dict


FAULTS = {
    "rollout-worker-killed": Fault(send(ROLLOUT)),
    "policy-worker-killed": Fault(send(POLICY)),
    "learner-killed": Fault(send(LEARNER)),
    "trainer-killed": Fault(lambda run: run.process.kill()),
    "policy-worker-hangs": Fault(send(POLICY, signal.SIGSTOP)),
    "learner-hangs": Fault(send(LEARNER, signal.SIGSTOP)),
    "all-stopped-for-20-s": Fault(stop_all),
    "env-never-works": Fault(flags=("--env=never_works",)),
    "env-raises": Fault(in_env("raise")),
    "env-hangs": Fault(in_env("hang")),
    "env-leaves-a-helper": Fault(in_env("helper")),
    "env-slow": Fault(in_env("slow")),
    "nan-reward": Fault(in_env("nan-reward")),
    "nan-observation": Fault(in_env("nan-observation")),
    "short-observation": Fault(in_env("short-observation")),
    "disk-full": Fault(fill_disk),
    "few-files": Fault(popen=few_files),
    "nobody-reads": Fault(popen=small_pipe),
    "two-trainers": Fault(start_another),
}


def rate(points: list[Point]) -> str:
    """Of those that lie in time between the first and the last of `points`."""
    if len(points) < 2:
        return "no"
    first, last = points[0], points[-1]
    return f"{(last.frames - first.frames) / (last.time_s - first.time_s):,.0f}"


def watch(name: str, fault: Fault, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Path(scratch), fault.flags, **fault.popen())
        try:
            time.sleep(START_S)
            before, log_before = run.points(), run.log()
            fault.strike(run)
            time.sleep(seconds / 3 * 2)
            middle = run.points()
            time.sleep(seconds / 3)
            after = run.points()[len(middle) :]
            code = run.process.poll()
            state = "it runs" if code is None else f"it ended with {code}"
            print(
                f"{name}: {rate([p for p in before if p.frames])} frames/s, "
                f"{rate(after)} {seconds:.0f} s later; {state}; "
                f"{len(run.processes())} of its processes are alive"
            )
            said = run.log()[len(log_before) :].splitlines()
            if code is not None:
                said += run.output.read_text().splitlines()[-200:]
            plain = dict.fromkeys(STAMP.sub("", line) for line in said)
            odd = [line for line in plain if ODD.search(line)]
            for line in odd[:8]:
                print(f"    {line[:200]}")
        finally:
            run.end()


@dataclass(frozen=True, kw_only=True)
class Args:
    faults: tuple[str, ...] = tuple(FAULTS)
    """Which of them."""
    seconds: float = 45.0
    """How long to look on after the fault."""


def main(args: Args) -> None:
    for name in args.faults:
        watch(name, FAULTS[name], args.seconds)


if __name__ == "__main__":
    main(tyro.cli(Args))
