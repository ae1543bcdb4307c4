"""Sample Factory 2.1.1 from PyPI on an Atari game: its throughput, or its learning curve.

    python -m benchmarks.sample_factory --seconds=70 --setting=32x256
    python -m benchmarks.sample_factory --seconds=3600 --setting=atari-defaults --run-dir=runs/sf

It gets a virtual environment of its own, built on first use (minutes): its requirements contradict
ours. The last line printed is JSON: peer, setting, frames_per_s (start-up left out), seconds.
`benchmarks.plot_curves` draws the curve of a --run-dir.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import venv
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

import tyro

from benchmarks.runs import Point, throughput
from sfrl.settings.machine import available_cores

SHUTDOWN_SECONDS = 30  # for Sample Factory to save and end; then it is killed
LOG_NAME = "sf_log.txt"

# Sample Factory's own settings for Atari (8 environments, 4 epochs, not asynchronous, a learning
# rate that falls to 0 at 10 M frames, where it ends), or environments x decisions per minibatch,
# both per core.
Setting = Literal["atari-defaults", "16x128", "32x256", "32x512"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

# "[2026-11-21 00:53:06,382][05448] Fps is (...). Total num frames: 12288. Throughput: ..."
TIME = re.compile(r"\[([\d-]+ [\d:]+,\d+)\]")
FRAMES = re.compile(r"Total num frames: (\d+)")
SCORE = re.compile(r"Avg episode reward: \[\(0, '(-?[\d.]+)'\)")


def setting_flags(setting: Setting, cores: int) -> list[str]:
    if setting == "atari-defaults":
        return []
    envs_per_core, batch_per_core = map(int, setting.split("x"))
    # Asynchronous, one epoch, frames enter the network as they are. GAE, because V-trace dies in
    # 2.1.1 (its learner misses 'advantages') and the run then idles at 0 frames/s.
    return [
        "--train_for_env_steps=10000000000",
        "--async_rl=True",
        f"--num_workers={cores}",
        f"--num_envs_per_worker={envs_per_core}",
        "--worker_num_splits=2",
        f"--batch_size={batch_per_core * cores}",
        "--num_batches_per_epoch=2",
        "--num_epochs=1",
        "--rollout=32",
        "--with_vtrace=False",
        "--normalize_input=False",
        "--normalize_returns=False",
    ]


def ready_python() -> Path:
    """The interpreter of Sample Factory's environment, which is built if it is not there yet.

    It lives in $PEER_VENV, or in ~/.cache/sfrl-peers/sample-factory.

    Raises:
        ValueError: the folder holds something else, which building would delete.
    """
    default = Path.home() / ".cache" / "sfrl-peers" / "sample-factory"
    folder = Path(os.environ.get("PEER_VENV", default))
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():  # and not just `python`: a build may have been interrupted
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise ValueError(
            f"PEER_VENV={folder} holds something that is no virtual environment; name a folder "
            "that is new or empty"
        )

    print(f"building {folder} (a few minutes)", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)

    def pip(*arguments: str) -> None:
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
        subprocess.run(command, check=True, stdout=sys.stderr)

    pip("install", "torch==2.13.0")
    pip("install", "sample-factory[atari]==2.1.1")
    # The ale-py that it asks for has no ROMs; those of the current wheel work in it.
    (ale_package,) = folder.glob("lib/python3*/site-packages/ale_py")
    with tempfile.TemporaryDirectory() as downloads:
        pip("download", "--no-deps", f"--dest={downloads}", "ale-py==0.12.1")
        (wheel,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            roms = [name for name in archive.namelist() if name.endswith(".bin")]
            archive.extractall(ale_package.parent, roms)
    complete.touch()
    return python


def train(env: str, flags: list[str], seconds: float, run_dir: Path) -> list[Point]:
    """Train for `seconds`, start-up included, and return the curve. The log stays in `run_dir`.

    Raises:
        RuntimeError: it failed. The text holds the end of what it printed.
        FileExistsError: `run_dir` is there already.
    """
    python = ready_python()
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True)
    has_cuda = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    device = "cpu" if subprocess.run([python, "-c", has_cuda], check=False).returncode else "gpu"
    command = [
        *(str(python), "-m", "sf_examples.atari.train_atari", f"--env=atari_{env.lower()}"),
        *(f"--train_dir={run_dir.parent}", f"--experiment={run_dir.name}"),
        *(f"--device={device}", *flags),
    ]
    output_path = run_dir / "output.txt"
    with output_path.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=run_dir,  # Python would also import from the current folder, which may be ours
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if process.wait(seconds) != 0:
                raise RuntimeError(f"sample-factory failed:\n{output_path.read_text()[-2000:]}")
        except subprocess.TimeoutExpired:
            # Its own --train_for_seconds has no effect. It then exits with 2.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                print("sample-factory did not end in time; killed", file=sys.stderr)
        finally:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return read_log(run_dir / LOG_NAME)


def read_log(path: Path) -> list[Point]:
    """The curve in Sample Factory's log. Time counts from the log's first line.

    Its score is the mean of up to 100 episodes, of the rewards that it learns from: clipped, and of
    single lives. In Pong, which has no lives and no larger rewards, that is the game's own score.
    The first episodes are too short, because they begin during its random warm-up.
    """
    points: list[Point] = []
    start: datetime | None = None
    for line in path.read_text().splitlines():
        stamp = TIME.match(line)
        if stamp is None:
            continue
        now = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S,%f")
        start = start or now
        if frames := FRAMES.search(line):
            points.append(Point((now - start).total_seconds(), int(frames[1]), None))
        elif points and (score := SCORE.search(line)):
            points[-1] = points[-1]._replace(score=float(score[1]))
    return points


@dataclass(frozen=True, kw_only=True)
class Args:
    env: str = "Pong"
    """The Atari game."""
    setting: Setting = "32x256"
    """atari-defaults, or environments x decisions per minibatch, both per core."""
    flags: str = ""
    """More flags for Sample Factory; they override the setting's."""
    seconds: float = 70.0
    """Time for the run, start-up included. With many environments that alone takes 25 s."""
    run_dir: str = ""
    """Where its log and checkpoints stay; must not exist yet. Empty: nowhere."""


def main(args: Args) -> None:
    more_flags = shlex.split(args.flags)
    flags = [*setting_flags(args.setting, available_cores()), *more_flags]
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(args.run_dir or f"{scratch}/run")
        points = train(args.env, flags, args.seconds, run_dir)
    result = {
        "peer": "sample-factory",
        "setting": " ".join([args.setting, *more_flags]),
        "frames_per_s": round(throughput(points)),
        "seconds": args.seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args))
