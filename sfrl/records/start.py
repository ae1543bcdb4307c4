"""How a start of a run came about: by which code, which command, and on which machine."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypedDict

from sfrl import __version__
from sfrl.envs.logs import printable
from sfrl.settings.machine import machine

# A config.json with all of them is far below `MAX_CONFIG_BYTES`.
_MAX_STARTS = 100
_MAX_COMMAND = 4096  # characters: `python -c` may have a program


class Change(TypedDict):
    """Of a setting: what it would have been by the environment and the system alone."""

    default: str | float
    by: str  # flag, tuner, config file, earlier start; or other settings, from which it follows


class Start(TypedDict):
    """What config.json keeps of each start, under the key `starts`."""

    time: str  # ISO 8601, with the zone
    env_frames: int  # that the run had before it
    version: str  # of sfrl
    commit: str | None  # of the checkout that sfrl lies in, if it is one; -dirty: with changes
    command: str  # as a shell takes it
    machine: dict[str, object]
    changed: dict[str, Change] | None  # settings, by name; None: not known


def this_start(env_frames: int, changed: Mapping[str, Change] | None = None) -> Start:
    """That of this process, whose run has so many frames already, and these changed settings."""
    where = {"host": socket.gethostname(), **machine()}
    commit = where.pop("commit")
    assert commit is None or isinstance(commit, str)
    command = printable(shlex.join(sys.orig_argv))
    if len(command) > _MAX_COMMAND:
        command = f"{command[:_MAX_COMMAND]} ..."
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "env_frames": env_frames,
        "version": __version__,
        "commit": commit,
        "command": command,
        "machine": where,
        "changed": None if changed is None else dict(changed),
    }


def with_start(earlier: Sequence[Start], start: Start) -> list[Start]:
    """The first one and the newest ones of a run, if they are many."""
    starts = [*earlier, start]
    return [*starts[:1], *starts[1:][-(_MAX_STARTS - 1) :]]
