"""`sfrl COMMAND`, or `python -m sfrl COMMAND`: what every command does before its own work."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from sfrl import __version__
from sfrl.commands import EXIT_USAGE

COMMANDS = {
    "train": "train an agent: sfrl train --env=Pong",
    "enjoy": "watch an agent play: sfrl enjoy --video=film.mp4",
    "export": "write a trained network to a file: sfrl export RUN --onnx=FILE.onnx",
    "demo": "train for five minutes, and show it in one page: sfrl demo --env=Pong",
    "bench": "tell where the frames go on this machine: sfrl bench --env=Pong",
    "try": "tell of an environment in a minute: sfrl try CartPole-v1",
    "status": "tell how a run stands, the newest unless one is named: sfrl status [RUN]",
    "diagnose": "tell what is wrong with a run, and what to try: sfrl diagnose [RUN]",
    "compare": "compare runs, grouped over their seeds: sfrl compare [RUN ...]",
    "plot": "draw the learning curves of runs: sfrl plot [RUN ...]",
    "video": "film a run's agent: sfrl video [RUN]",
    "list": "list the runs in a folder: sfrl list [FOLDER]",
    "web": "show runs in the browser: sfrl web [FOLDER]",
    "rm": "delete runs: sfrl rm RUN ...",
}


def main() -> NoReturn:
    """Run the command that the first argument names with the others."""
    name, *argv = sys.argv[1:] or [""]
    if name in COMMANDS:
        run(name, argv, f"sfrl {name}")
    if name == "--version":
        print(f"sfrl {__version__}")
        sys.exit(0)
    wants_help = name in ("--help", "-h")
    lines = [
        "usage: sfrl COMMAND [--help | --name=value ...]",
        *(f"  {command:10}{what}" for command, what in COMMANDS.items()),
    ]
    if name and not wants_help:
        lines.insert(0, f"sfrl: {name!a} is no command; choose from {', '.join(COMMANDS)}")
    print(*lines, sep="\n", file=sys.stdout if wants_help else sys.stderr)
    sys.exit(0 if wants_help else EXIT_USAGE)


def run(command: str, argv: Sequence[str], prog: str) -> NoReturn:
    """Run the module of that name in sfrl/commands, and end this process with its exit code.

    Args:
        prog: what the user has called. The command's errors begin with it.
    """
    _open_what_is_closed()
    # Ctrl-C while the imports run ends it quietly; from then on the command handles signals. A
    # training that has not begun has ended in order; what the others are called for is not done.
    # Not sys.exit: a module that is being imported may catch the exception.
    for signum in (signal.SIGINT, signal.SIGTERM):
        code = 0 if command == "train" else 128 + signum
        signal.signal(signum, lambda *_, code=code: os._exit(code))
    # Of a parent that ignores it we would inherit that, and never learn how a child ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _look_where_the_user_stands()
    try:
        module = importlib.import_module(f"sfrl.commands.{command}")
        from sfrl.run.leaving import leave_after
    except (ImportError, MemoryError) as error:
        sys.exit(
            f"{prog}: its packages cannot be loaded: {error or type(error).__name__}; install them "
            f"(pip install -r requirements.txt), or raise the limit on memory (ulimit -v) if there "
            f"is one"
        )
    leave_after(lambda: module.main(argv, prog))


def _open_what_is_closed() -> None:
    """The next file would get the number of a closed stdout, and all that is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _look_where_the_user_stands() -> None:
    """Have modules be found in the user's folder, last, so that it hides nothing installed.

    What Python has put first, the folder of train.py or of the command, goes: what lies there
    beside sfrl (`envs`, `tests`) would hide the user's own. sfrl's modules are found all the same,
    by the path of the package.
    """
    if not sys.flags.safe_path:
        del sys.path[0]
    with suppress(FileNotFoundError):  # of a folder that is gone, which is told of later
        sys.path.append(os.getcwd())


if __name__ == "__main__":
    main()
