"""What an environment looks like: found out once, in a process that does nothing else.

An environment's constructor may start threads, fork, change the working directory, take a license,
hang or crash. The trainer lives as long as the run and holds its locks, so it makes none but with
--serial, or where the program that calls it has registered the environment itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe, connection
from typing import Any, BinaryIO, NamedTuple, NoReturn

import gymnasium
from setproctitle import setproctitle

from sfrl import envs
from sfrl.envs import EnvOptions, EnvSpec, TrainsOnImportError
from sfrl.ipc.shared_memory import Stopped
from sfrl.run.child import die_with_parent
from sfrl.run.leaving import leave
from sfrl.run.signals import STOP_SIGNALS, leave_stopping_to_the_trainer
from sfrl.run.spawning import ROOT, descendants, terminate
from sfrl.run.watchdog import LONGEST_LOOK_S, START_LIMIT_S

_POLL_S = 0.05
_MAX_LINE = 500  # bytes of what a process that died has printed last
_END_S = 2.0  # for the process to end, once it has told

# Not multiprocessing's spawn, which sets a process up for much that this one does without.
_COMMAND = (
    "import json, sys; sys.path[:0], path, *given = json.loads(sys.argv[1]); "
    "import sfrl; sys.path[:] = path; "  # this very one; the environment's path is then the user's
    "from sfrl.run.description import tell; tell(*given)"
)


class _Refusal(NamedTuple):
    """Why there is no description."""

    text: str
    is_unknown: bool = False


def describe(
    env: str,
    options: EnvOptions,
    timeout_s: float,
    signals: Sequence[int] = (),
    *,
    is_serial: bool = False,
) -> EnvSpec:
    """`envs.describe`, in a process of its own unless it is an Atari game, which needs none.

    Args:
        timeout_s: for the environment to be made, --env-timeout.
        signals: it is given up once there is one in it.
        is_serial: it is this process that will train, so that what it has registered is there.

    Raises:
        envs.UnknownEnvError: no such name.
        ValueError: it cannot be made, or not trained; the text tells why.
        MemoryError: the process could not be started.
        Stopped: there is a signal.
    """
    if envs.atari_game(env) is not None:
        return envs.describe(env, options)
    receiver, sender = Pipe(duplex=False)
    # What it prints goes into a file, which never waits for a reader. The workers print it again.
    with receiver, os.fdopen(os.memfd_create("printed"), "w+b") as printed:
        with sender:  # the child's alone: its end is then the end of the pipe
            child = _start(env, options, sender, printed)
        try:
            outcome = _receive(child, receiver, env, timeout_s, signals, printed)
            if isinstance(outcome, EnvSpec):
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_END_S)  # a license or a port that it holds is free then
                return outcome
        finally:
            orphans = descendants(child.pid) if child.poll() is None else []
            child.kill()
            child.wait()
            terminate(orphans)
    if not outcome.is_unknown:
        raise ValueError(outcome.text)
    env_id = env.removeprefix("__main__:")
    if env_id in gymnasium.registry:  # by the program itself that runs here
        if is_serial:
            return envs.describe(env, options)
        raise envs.UnknownEnvError(
            f"env={env} is registered in this program alone, which workers, processes of their "
            f"own, do not run; put it into a module, and name it as module:{env_id}"
        )
    raise envs.UnknownEnvError(outcome.text)


def _start(
    env: str, options: EnvOptions, sender: connection.Connection, printed: BinaryIO
) -> subprocess.Popen[bytes]:
    told = dataclasses.asdict(options)
    given = json.dumps([[ROOT], sys.path, env, told, sender.fileno(), os.getpid()])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until it can be told of them
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, given],  # -P: without the user's json.py
            pass_fds=[sender.fileno()],
            close_fds=True,
            stdout=printed,
            stderr=printed,
        )
    except OSError as error:
        raise MemoryError(
            f"the process that describes {env} could not be started: {error}; the machine may be "
            f"out of memory or at its limit of processes (ulimit -u)"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _receive(
    child: subprocess.Popen[bytes],
    receiver: connection.Connection,
    env: str,
    timeout_s: float,
    signals: Sequence[int],
    printed: BinaryIO,
) -> EnvSpec | _Refusal:
    """What the child tells, or what is to be said of one that does not. Raises Stopped."""
    doing, limit_s = "imported", max(START_LIMIT_S, timeout_s)
    waited_s, last_look_s = 0.0, time.monotonic()
    while waited_s < limit_s:
        connection.wait([receiver], _POLL_S)
        if signals:
            raise Stopped
        has_ended = child.poll() is not None  # asked first: it may have told and ended
        if receiver.poll():
            try:
                message: EnvSpec | _Refusal | None = receiver.recv()
            except EOFError:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_END_S)
                has_ended = True
            else:
                if message is not None:
                    return message
                doing, limit_s, waited_s = "made", timeout_s, 0.0
                last_look_s = time.monotonic()
                continue  # it may have told the rest as well, and ended
        if has_ended:
            end = f"{_end_of(child)}{_last_line(printed)}"
            return _Refusal(f"env={env} could not be {doing}: its process {end}")
        now = time.monotonic()
        waited_s += min(now - last_look_s, LONGEST_LOOK_S)  # not while this process was stopped
        last_look_s = now
    return _Refusal(
        f"env={env} was not {doing} within {limit_s:g} s (env_timeout={timeout_s:g}); raise "
        f"--env-timeout if it takes longer"
    )


def _last_line(printed: BinaryIO) -> str:
    """Often the reason."""
    printed.seek(max(0, printed.seek(0, os.SEEK_END) - _MAX_LINE))
    lines = printed.read().decode("utf-8", "backslashreplace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; the last that it printed: {last}" if last else ""


def _end_of(child: subprocess.Popen[bytes]) -> str:
    code: int | None = child.returncode
    if code is None:
        return "has closed all files"
    known = {number.value: number.name for number in signal.Signals}
    return f"exited with {code}" if code >= 0 else f"was killed by {known.get(-code, -code)}"


# --- in the child ---


def tell(env: str, options: dict[str, Any], descriptor: int, parent: int) -> NoReturn:
    """Send None once the environment's module is imported, and then the description."""
    setproctitle("sfrl description")
    leave_stopping_to_the_trainer()
    die_with_parent(parent)
    sender = connection.Connection(descriptor, readable=False)
    outcome: EnvSpec | _Refusal
    doing = "imported"
    try:
        envs.find_vectors(env)
        sender.send(None)
        doing = "made"
        outcome = envs.describe(env, EnvOptions(**options))
    except envs.UnknownEnvError as error:
        outcome = _Refusal(str(error), is_unknown=True)
    except envs.UnsupportedEnvError as error:
        outcome = _Refusal(str(error))
    except TrainsOnImportError as error:
        outcome = _Refusal(f"env={env} could not be {doing}: {error}")
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        remedy = ""
        if isinstance(error, ModuleNotFoundError):
            remedy = f"; install the package that has {error.name!r}, or correct the name"
        outcome = _Refusal(f"env={env} could not be {doing}: {envs.in_one_line(error)}{remedy}")
    sender.send(outcome)
    terminate(descendants(os.getpid()))  # what the environment leaves behind
    leave(0)
