"""`sfrl.train`: what `python train.py` does, for programs, notebooks and sweeps."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from sfrl.callbacks import Callback, make_callbacks
from sfrl.envs import TrainsOnImportError
from sfrl.ipc.shared_memory import Stopped, unlink_segments
from sfrl.records import run_folder
from sfrl.run import limits
from sfrl.run.child import serves_a_run
from sfrl.run.signals import children_noticed, signals_to
from sfrl.run.trainer import Summary, Trainer
from sfrl.settings.algorithms import all_settings
from sfrl.settings.config import ConfigError
from sfrl.settings.fields import Setting, seconds
from sfrl.settle import changes, settle, tuned
from sfrl.show.output import own_output

_running = threading.Lock()
_running_in: int | None = None  # the thread that holds it


def train(*, callbacks: Sequence[Callback] = (), **settings: Any) -> Summary:
    """Train an agent as `python train.py` does, and return how the run ended.

        from sfrl import train

        summary = train(env="CartPole-v1", train_frames=100_000)
        print(summary.run_dir, summary.episode_return_mean)

    It needs no `if __name__ == "__main__"`, but in a module that a run imports. Ctrl-C and SIGTERM
    end the run in order, with a checkpoint, and then do what they do in the calling program: Ctrl-C
    raises KeyboardInterrupt. Called in another thread than the main one it takes no notice of them.

    Args:
        callbacks: are told what happens in the run, and may end it.
        settings: the flags of `python train.py --help-all`, with underscores. What is left out is
            what the command would take: what learns in this kind of environment, fitted to this
            machine.

    Raises:
        ValueError: a setting cannot work, or the environment cannot be trained; mostly ConfigError.
        MemoryError: the machine lacks memory, open files or processes for the run.
        CheckpointError: there is nothing to resume.
        WorkerError: a component of the run failed. The text tells which, and its traceback.
        OSError: the run's folder cannot be written.
        TypeError: `callbacks` is no list, or one of them is no callback.
        RuntimeError: this process trains already; or it serves a run, and imports what calls this;
            or it ignores SIGCHLD, this is not its main thread, and the run is not serial.
    """
    started_s = time.monotonic()
    signals: list[int] = []
    summary = None

    def give_up(signum: int) -> None:
        signals.append(signum)
        raise KeyboardInterrupt

    def note(signum: int) -> None:
        give_up(signum) if signals else signals.append(signum)

    with only_run(), children_noticed(), signals_to(note):
        try:
            known = all_settings()
            given = {name: _plain(value, known.get(name)) for name, value in settings.items()}
            trainer = prepare(given, signals, give_up, started_s, callbacks)
            if not signals:
                with own_output() as output:
                    summary = trainer.run(output)
            else:
                trainer.folder.unlock()  # who keeps what is raised keeps the trainer
        except (Stopped, KeyboardInterrupt):
            if not signals:
                raise
    if signals:
        signal.raise_signal(signals[0])  # now to whom it would have gone
    if summary is None:  # he takes no notice, but there is nothing to return
        raise KeyboardInterrupt
    return summary


def _plain(value: object, setting: Setting | None) -> object:
    """A path as text, NumPy's scalars as Python's, and 1e6 whole where a whole number is due.

    The arguments of an environment may be a dict; flags and files have them as JSON.
    """
    if isinstance(value, dict) and setting and setting.name == "env_kwargs":
        return _as_json(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and setting and setting.type is int:
        return int(value)
    if isinstance(value, str) and setting and setting.is_duration:
        with suppress(ValueError):  # else it is refused as what it is
            return seconds(value)
    return value


def _as_json(value: object) -> str:
    """Raises ConfigError: it holds what JSON has no form for."""

    def of_numpys(part: object) -> object:
        if isinstance(part, np.generic | np.ndarray):
            return part.tolist()
        raise TypeError(f"{part!r} is none of these")

    try:
        return json.dumps(value, default=of_numpys)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"env_kwargs={value!r} must hold numbers, texts, True, False, None, lists and dicts "
            f"alone, which config.json can hold: {error}"
        ) from error


def prepare(
    given: Mapping[str, Any],
    signals: list[int],
    give_up: Callable[[int], None],
    started_s: float,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """The trainer of a run with these settings, which has not started anything.

    Args:
        given: what the user has set.
        signals: those that the caller notes.
        give_up: called for a signal while the machine is measured. It raises something.
        started_s: when the run began, by the monotonic clock.
        callbacks: beside those that settings name.

    Raises:
        What `settle`, `make_callbacks` and `Trainer` do; TypeError: `callbacks` is no list, or
            one of them is no callback.
    """
    if isinstance(callbacks, Callback):
        raise TypeError(f"callbacks={callbacks!r:.80} must be a list; write callbacks=[...]")
    callbacks = [*(callbacks or ())]  # it may be an iterator
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks has {callback!r:.80}, and must have objects of classes that derive "
                f"from sfrl.Callback"
            )
    config, spec = settle(given, signals)
    callbacks = [*callbacks, *make_callbacks(config.log_to, config.prometheus)]
    if config.video_every:
        from sfrl.run.filming import Filming

        callbacks.append(Filming(config, signals))
    if config.web:
        from sfrl.web.beside import Beside

        callbacks.append(Beside(config))
    limits.check_machine(config)
    untuned = config
    if not signals:
        with signals_to(give_up), own_output():
            config = tuned(config, given, spec)
    changed = changes(config, untuned, given, spec)
    return Trainer(config, signals, started_s, spec, callbacks, changed)


@contextmanager
def only_run() -> Iterator[None]:
    """Whatever happens in the block, it leaves no shared memory and no empty folder behind.

    Raises:
        RuntimeError: another thread of this process is in such a block. Both would write to the
            same stdout, and share signals, locks and shared memory. Or the block would be within
            one: a run has imported a module that begins another.
    """
    global _running_in
    if serves_a_run() or _running_in == threading.get_ident():
        raise TrainsOnImportError
    if not _running.acquire(blocking=False):
        raise RuntimeError(
            "this process trains already; start each run at the same time in a process of its own"
        )
    _running_in = threading.get_ident()
    try:
        yield
    finally:
        unlink_segments()
        run_folder.remove_empty()
        _running_in = None
        _running.release()
