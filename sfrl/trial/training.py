"""A short training run in a process of its own, and what its records tell."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

from sfrl.api import train
from sfrl.ipc.shared_memory import Stopped, sweep_stale_segments
from sfrl.records.checkpoint import CheckpointError
from sfrl.records.metrics import Record
from sfrl.run.apart import EndedError, apart
from sfrl.run.crew import WorkerError
from sfrl.runs import reader

_MORE_S = 30.0  # beyond its time, for the run's end
_STOP_S = 10.0


class _Ended(NamedTuple):
    problem: str | None = None
    is_machines: bool = False


class Training(NamedTuple):
    """A run, and how it ended."""

    records: list[Record]
    problem: str | None
    """Why it ended too soon; None: it did not."""
    is_machines: bool
    """That is the machine's fault, such as too little memory, and not the environment's."""
    environments: int = 0
    """That were played at once; 0: not known."""


def train_for(
    given: Mapping[str, Any], run_dir: Path, seconds: float, signals: Sequence[int] = ()
) -> Training:
    """Train with these settings, start-up included, in the folder.

    Args:
        signals: it is given up once there is one in it.

    Raises:
        MemoryError: the process could not be started.
        Stopped: there is a signal. The run has ended in order.
    """
    given = {**given, "run_dir": str(run_dir), "train_seconds": seconds}
    ended: _Ended
    with apart("sfrl.trial.training:tell", "training", "trains", given) as child:
        try:
            ended = child.receive(seconds + _MORE_S, signals)
        except EndedError as error:
            ended = _Ended(f"its process {error}", is_machines=True)
        except TimeoutError:
            ended = _Ended(f"it went on for {_MORE_S:g} s after its end", is_machines=True)
        finally:
            child.process.terminate()  # a run then ends its workers
            child.wait(_STOP_S)
    sweep_stale_segments(child.process.pid)
    run = reader.read(run_dir)
    environments = run.number("num_workers") * run.number("envs_per_worker")
    return Training([*run.records], *ended, int(environments))


def tell(sender: connection.Connection, parent: int, given: dict[str, Any]) -> None:
    """Train, and send how it ended."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        train(**given)
    except (MemoryError, OSError) as error:
        ended = _Ended(str(error), is_machines=True)
    except (ValueError, CheckpointError, WorkerError, gymnasium.error.Error) as error:
        ended = _Ended(str(error))
    except (Stopped, KeyboardInterrupt):
        ended = _Ended("it was stopped")
    else:
        ended = _Ended()
    sender.send(ended)
