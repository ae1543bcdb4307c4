"""What an environment looks like: found out once, in a process that does nothing else.

An environment's constructor may start threads, fork, change the working directory, take a license,
hang or crash. The trainer lives as long as the run and holds its locks, so it makes none but with
--serial, or where the program that calls it has registered the environment itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import gymnasium

from sfrl import envs
from sfrl.envs import EnvOptions, EnvSpec, TrainsOnImportError
from sfrl.run.apart import Apart, EndedError, apart
from sfrl.run.child import die_with_parent
from sfrl.run.watchdog import START_LIMIT_S


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
    given = (env, dataclasses.asdict(options))
    with apart("sfrl.run.description:tell", "description", f"describes {env}", *given) as child:
        outcome = _outcome(child, env, timeout_s, signals)
        if isinstance(outcome, EnvSpec):
            child.wait()
            return outcome
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


def _outcome(
    child: Apart, env: str, timeout_s: float, signals: Sequence[int]
) -> EnvSpec | _Refusal:
    """What the child tells, or what is to be said of one that does not. Raises Stopped."""
    doing, limit_s = "imported", max(START_LIMIT_S, timeout_s)
    try:
        outcome: EnvSpec | _Refusal | None = child.receive(limit_s, signals)
        if outcome is None:
            doing, limit_s = "made", timeout_s
            outcome = child.receive(limit_s, signals)
    except EndedError as error:
        return _Refusal(f"env={env} could not be {doing}: its process {error}")
    except TimeoutError:
        return _Refusal(
            f"env={env} was not {doing} within {limit_s:g} s (env_timeout={timeout_s:g}); raise "
            f"--env-timeout if it takes longer"
        )
    assert outcome is not None
    return outcome


# --- in the child ---


def tell(sender: connection.Connection, parent: int, env: str, options: dict[str, Any]) -> None:
    """Send None once the environment's module is imported, and then the description."""
    die_with_parent(parent)
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
