"""`sfrl train`: flags become settings, errors become lines and exit codes."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import gymnasium

from sfrl import envs
from sfrl.api import only_run, prepare
from sfrl.commands import EXIT_FAILURE, EXIT_USAGE
from sfrl.envs.logs import printable
from sfrl.ipc.shared_memory import Stopped
from sfrl.records import checkpoint, run_folder
from sfrl.run.crew import WorkerError
from sfrl.run.signals import signals_to
from sfrl.run.trainer import Summary
from sfrl.settings import flags, synonyms
from sfrl.settings.algorithms import default_config, user_settings
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.fields import Setting, settings_of
from sfrl.settle import defaults_of, saved_settings, settle
from sfrl.show.output import own_output
from sfrl.systems import SYSTEMS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

READER_LIMIT_S = 5  # for whoever reads the summary of a run that a signal has ended


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl train` with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
    """
    started_s = time.monotonic()
    signals: list[int] = []
    has_ended = False

    def note(signum: int) -> None:
        """What is being set up is finished or, the second time, given up.

        What the run has to say at its end is given up at once: perhaps nobody reads it.
        """
        if signals or has_ended:
            sys.exit(EXIT_FAILURE if sys.exception() else 0)  # what is being told stays an error
        signals.append(signum)

    with only_run(), signals_to(note), ExitStack() as stack:
        try:
            given = read_flags(argv, prog)
            started_in = run_folder.started_in()  # an environment may go elsewhere
            trainer = prepare(given, signals, lambda _: sys.exit(0), started_s)
        except Stopped:  # by a signal, while the environment was looked at
            return 0
        except (
            ValueError,
            MemoryError,
            checkpoint.CheckpointError,
            gymnasium.error.Error,  # the environment misses a package, or its id is outdated
        ) as error:
            _complain(prog, str(error))
            return EXIT_USAGE
        if signals:
            return 0
        try:
            with own_output(last_line_follows=True) as output:
                summary = trainer.run(output)
                has_ended = True
                if signals:  # who ends it perhaps reads no more
                    stack.enter_context(_leaving_after(READER_LIMIT_S))
        except (
            WorkerError,
            MemoryError,  # a thread or a process that could not be started
            checkpoint.CheckpointError,
            run_folder.RunFolderError,
            ConfigError,  # of a port that another program has taken meanwhile
        ) as error:
            _complain(prog, str(error))
            return EXIT_FAILURE
        except OSError as error:
            if error.filename is None:
                raise  # no file that the user could do something about
            _complain(prog, f"the run's folder cannot be written: {error}")
            return EXIT_FAILURE
        try:
            if sys.stdout.isatty():
                print(printable(_next_steps(trainer.config, summary, prog, started_in)), end="")
            print(json.dumps(dataclasses.asdict(summary)), flush=True)
        except OSError as error:  # a full disk, or a reader that has gone
            _complain(prog, f"the run's summary cannot be written: {error}")
            return EXIT_FAILURE
        return 0


def _next_steps(config: Config, summary: Summary, prog: str, folder: Path) -> str:
    """What to type next, in lines, for one who stands in `folder`. "" without a checkpoint.

    Args:
        prog: what the user has called: train.py, whose path is in sys.argv, or "sfrl train".
    """
    if not checkpoint.latest_paths(Path(summary.run_dir)):
        return ""
    run_dir = shlex.quote(str(run_folder.told(summary.run_dir, folder)))
    if prog.endswith(".py"):
        script, python = Path(sys.argv[0]), _typed("python", folder)
        train, enjoy = (
            f"{python} {shlex.quote(str(path))}" for path in (script, script.with_name("enjoy.py"))
        )
    else:
        train, enjoy = (f"{_typed('sfrl', folder)} {command}" for command in ("train", "enjoy"))
    is_done = 0 < config.train_frames <= summary.env_frames
    more = f" --train-frames={2 * config.train_frames}" if is_done else ""
    return "\n".join(
        (
            f"watch:   {enjoy} --run-dir={run_dir} --video=film.mp4",
            f"go on:   {train} --resume --run-dir={run_dir}{more}",
            f"curves:  {_typed('tensorboard', folder)} --logdir {run_dir}\n\n",
        )
    )


def _typed(program: str, folder: Path) -> str:
    """How to call a program that is installed with this Python, for one who stands in `folder`: by
    its path, unless its name means that one."""
    own = Path(sys.executable).with_name(program)
    if program == "python" and not own.exists():  # python3, as on Debian
        program = Path(sys.executable).name
        own = Path(sys.executable)
    found = shutil.which(program)
    if not own.exists() or (found and Path(found).absolute().parent == own.parent):
        return program
    path = run_folder.told(own, folder)
    return shlex.quote(str(path if len(path.parts) > 1 else own))  # a shell seeks names elsewhere


@contextmanager
def _leaving_after(seconds: int) -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _complain(prog: str, text: str) -> None:
    print(printable(f"{prog}: {text}"), file=sys.stderr)


def parse(argv: Sequence[str]) -> Config:
    """The complete, checked settings of a run with these flags. Raises as `settle.settle`."""
    return settle(read_flags(argv))[0]


def read_flags(argv: Sequence[str], prog: str = "sfrl train") -> dict[str, Any]:
    """What the flags set, by the setting's name.

    `--help` and `--help-all` print and leave, as do `--version` and `--list-systems`.

    Raises:
        ConfigError: lists all unknown flags and all values of a wrong type.
    """
    given = _given(argv)
    if "help" in given:
        _print_help(given, prog, is_whole=given.pop("help"))
    return given


def read_more_flags(
    argv: Sequence[str], own: T, prog: str, description: str
) -> tuple[T, dict[str, Any]]:
    """The flags of a command that trains as well: its own, and what others set, as `read_flags`.

    Args:
        own: a dataclass with their defaults.
        prog: what the user has called, and what may stand before flags, for --help.
    """
    all_own = settings_of(type(own))
    names = {name: setting for name, setting in all_own.items() if not setting.is_note}
    given = _given(argv, names)
    if "help" in given:
        text = f"{description} Takes the flags of sfrl train as well."
        flags.print_help(own, names, prog, text, is_whole=True)
    of_own = {name: given.pop(name) for name in names if name in given}
    return dataclasses.replace(own, **of_own), given


def _given(
    argv: Sequence[str], more: Mapping[str, Setting] = MappingProxyType({})
) -> dict[str, Any]:
    if "--list-systems" in argv:
        print(_systems_told())
        sys.exit(0)
    return flags.read_flags(argv, {**user_settings(), **more}, synonyms.OF_TRAIN)


def _systems_told() -> str:
    """A table, each with its purpose and its paper, and what it fixes."""
    width = max(len(f"--system={name} ") for name in SYSTEMS)
    parts = []
    for system in SYSTEMS.values():
        lines = [system.purpose, system.paper]
        if system.fixed:
            fixed = ", ".join(f"{name}={fixed.told}" for name, fixed in system.fixed.items())
            lines += textwrap.wrap(f"always {fixed}", 100 - width, break_on_hyphens=False)
        parts += [
            f"{name:{width}s}{line}"
            for name, line in zip_longest([f"--system={system.name}"], lines, fillvalue="")
        ]
    return "\n".join(parts)


def _print_help(given: dict[str, Any], prog: str, *, is_whole: bool) -> NoReturn:
    """The usual settings, or all, with what stands where nothing is given; then leave."""
    try:
        defaults, _ = defaults_of(given, saved_settings(given))
    except (envs.UnknownEnvError, ConfigError):
        defaults = default_config(given)
    text = "Train an agent. --list-systems tells of the systems there are. See docs/flags.md."
    known = settings_of(type(defaults)).keys()
    settings = {name: setting for name, setting in user_settings().items() if name in known}
    flags.print_help(defaults, settings, prog, text, is_whole)
