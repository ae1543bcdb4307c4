"""Trainer: creates the shared objects, starts, supervises and stops the workers."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sfrl import envs
from sfrl.callbacks.callback import Callback, RunStart
from sfrl.envs.logs import own_logger, printable
from sfrl.ipc.messages import (
    CheckpointFailed,
    CheckpointRequest,
    CheckpointSaved,
    EpisodeEnded,
    LearnerReport,
    Notice,
)
from sfrl.ipc.shared_memory import sweep_stale_segments, unlink_segments
from sfrl.records import checkpoint, run_folder
from sfrl.records.metrics import RunMetrics
from sfrl.records.metrics_writer import MetricsWriter
from sfrl.records.start import Change, Start, this_start
from sfrl.run import limits
from sfrl.run.crew import Crew, WorkerError
from sfrl.run.description import describe
from sfrl.run.log_file import LogFile, reason_of, run_log
from sfrl.run.owned_folder import OwnedFolder
from sfrl.run.process_crew import ProcessCrew
from sfrl.run.roles import Shared, make_shared
from sfrl.run.serial_crew import SerialCrew
from sfrl.run.signals import signals_to
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.defaults import caveats, resolve
from sfrl.settings.machine import cpu_flags
from sfrl.show.display import Display, PanelDisplay, make_display
from sfrl.show.output import Output

log = own_logger(__name__)

# For the workers to finish, before they are killed. The learner writes a checkpoint meanwhile.
STOP_TIMEOUT_S = 8.0
FAILED_STOP_TIMEOUT_S = 4.0
# While workers start there is nothing to save, and one that imports torch cannot see the stop flag.
STARTING_STOP_TIMEOUT_S = 1.0
# How often the trainer sees whether the run's folder is still there, and what it is asked for.
FOLDER_LOOK_S = 1.0
# A second signal within this time is ignored: `timeout` signals a process, and then its group.
INSISTENCE_S = 0.5


@dataclass(frozen=True)
class Summary:
    """How a run ended. `seconds` and `frames_per_s` are of this start alone, start-up included."""

    env_frames: int
    env_steps: int
    seconds: float
    frames_per_s: float
    episodes: int
    episode_return_mean: float | None
    run_dir: str


class Trainer:
    """One run, from its first process to its last: `Trainer(config).run()`.

    The trainer itself neither emulates nor trains; with --serial its thread runs the workers that
    do. It watches its workers, collects what they
    report, writes metrics, asks the learner for checkpoints, and stops everything.
    """

    def __init__(
        self,
        config: Config,
        signals: list[int] | None = None,
        started_s: float | None = None,
        spec: envs.EnvSpec | None = None,
        callbacks: Sequence[Callback] = (),
        changed: Mapping[str, Change] | None = None,
    ) -> None:
        """Look at everything that can be wrong before anything starts.

        Args:
            config: complete, as `sfrl.train` makes it; the class's defaults are Atari's. With
                `resume` its `run_dir` holds the run to go on with.
            signals: those that the caller notes until `run` does. With one in it the run ends.
            started_s: when the run began, by the monotonic clock; None: now.
            spec: the environment's description, which `config` fits; None: it is looked at here.
            callbacks: are told what happens in the run.
            changed: which settings are not the defaults, for config.json; None: not known.

        Raises:
            envs.UnknownEnvError, ValueError: the environment cannot be trained, or not so.
            MemoryError: /dev/shm is too small for the trajectory buffer, or the machine lacks
                memory, open files or processes for the run.
            checkpoint.CheckpointError: there is nothing to resume.
            run_folder.RunFolderError: another trainer is at work in the run's folder.
            Stopped: there was a signal while the environment was looked at.
        """
        if not config.run_dir:
            raise ValueError("run_dir='' must name the run's folder; settle.settle makes one")
        # Absolute: with --serial an environment may change the working directory of this process.
        self._started_in = run_folder.started_in()
        self.run_dir = self._started_in / config.run_dir
        self.config = config = dataclasses.replace(config, run_dir=str(self.run_dir))
        self._started_s = time.monotonic() if started_s is None else started_s
        self.metrics = RunMetrics(start_s=self._started_s, statistics=config.STATISTICS)
        self.resumed = None
        self.folder = OwnedFolder(config)
        with self.folder.unlocked_on_failure():
            if config.resume:
                self.folder.lock()
                self.resumed = checkpoint.load_latest(self.run_dir)
                self._check_memory(*self.resumed)
            if spec is None:
                spec = describe(
                    *(config.env, config.env_options, config.env_timeout, signals or ()),
                    is_serial=config.serial,
                )
                self.config = _resolved(config, spec)
            self.shared = self._make_shared(spec)
            self.crew: Crew = (SerialCrew if config.serial else ProcessCrew)(self.shared)
            self._best_saved = checkpoint.best_score(self.run_dir) if config.resume else None
        self._caveats = caveats(config.env, spec)
        self._callbacks = callbacks
        self._changed = changed
        self._listening: list[Callback] = []  # those that have begun
        self._ended_by = ""  # who has asked for the end
        self._first_frame = self.shared.progress.env_frames
        # Those received. The handler only appends, the loop acts.
        self._signals: list[int] = [] if signals is None else signals
        self._first_signal_s = 0.0  # on the monotonic clock
        self._lag_counts = np.zeros(1, np.int64)
        self._write_failures = 0
        self._write_problems: dict[str, str] = {}  # the latest reason, by what was not written
        self._last_checkpoint = str(self.resumed.path) if self.resumed else None
        self._is_last_saved = False

    def _check_memory(self, state: dict[str, Any], path: Path) -> None:
        from sfrl.nets.model import check_memory

        try:
            check_memory(state["model"], self.config.memory)
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{path} does not fit this run: {error}") from error

    def _make_shared(self, spec: envs.EnvSpec) -> Shared:
        config = self.config
        for name in sweep_stale_segments():
            log.warning("removed %s, which a dead run had left in shared memory", name)
        limits.check(config, spec)
        shared = make_shared(config, spec)
        if self.resumed is not None:
            progress = shared.progress
            state, path = self.resumed
            try:
                progress.env_steps[-1] = state["counters"]["env_steps"]
                self.metrics.load_state(state["metrics"], env_frames=progress.env_frames)
            except KeyError as error:
                raise checkpoint.CheckpointError(
                    f"{path} lacks {error}, without which a run cannot go on; use another one"
                ) from error
        return shared

    def run(self, output: Output | None = None) -> Summary:
        """Train until a limit, a signal or a failure.

        Args:
            output: where to write. None: stdout and stderr, for whose reader the run then waits.

        Raises:
            crew.WorkerError: a component failed. A checkpoint was written first if the learner was
                still there to do it; or the last checkpoint could not be written.
            run_folder.RunFolderError: another run is, or has been, in the folder; or it cannot be
                written.
        """
        config = self.config
        output = output or Output(sys.stdout, sys.stderr)
        resume_frames = self._first_frame if self.resumed else None
        resume_path = str(self.resumed.path) if self.resumed else None
        with ExitStack() as stack:
            stack.callback(run_folder.remove_empty)
            stack.callback(self.folder.unlock)
            stack.callback(unlink_segments)
            if not config.resume:
                with suppress(FileExistsError):
                    run_folder.make(self.run_dir)
                with run_folder.problems_told(self.run_dir):
                    self.folder.lock()
                run_folder.check_new(self.run_dir)
            stack.enter_context(signals_to(self._note_signal))
            display = stack.enter_context(self._make_display(output))
            if isinstance(display, PanelDisplay):
                output.show = display.show
                stack.callback(setattr, output, "show", None)
            with run_folder.problems_told(self.run_dir):
                log_file = stack.enter_context(
                    run_log(self.run_dir / "log.txt", display, self.folder.owns)
                )
                writer = stack.enter_context(
                    MetricsWriter(
                        self.run_dir,
                        resume_frames=resume_frames,
                        is_ours=self.folder.owns,
                        settings=self.config.hyperparameters(),
                    )
                )
            stack.enter_context(self._folder_left_in_order(log_file, writer))
            self._announce(resume_path)
            if not config.resume:
                self.folder.save_config(self.config, self._start())
            try:
                if not self._end_reason():  # a run that goes on may have had its frames before
                    self.crew.start(resume_path)
                    if config.resume:
                        # Not of what cannot start.
                        self.folder.save_config(self.config, self._start())
                self._begin_callbacks(stack)
                self._supervise(display, writer)
            finally:
                failures = self._stop()
                self._report(display, writer)
            if failures:
                raise WorkerError("\n".join(failures))
            summary = self._summary()  # of before callbacks wait for their networks
        return summary

    def _start(self) -> Start:
        return this_start(self._first_frame, self._changed)

    def _begin_callbacks(self, stack: ExitStack) -> None:
        """Until `stack` ends, after the last report."""
        for callback in self._callbacks:
            settings, starts = self.config.hyperparameters(), copy.deepcopy(self.folder.starts)
            callback.begin(RunStart(self.run_dir, self.config.env, settings, starts))
            stack.callback(callback.end)
            self._listening.append(callback)

    def _tell(self, event: Literal["report", "episode", "checkpoint"], *what: Any) -> None:
        """The callbacks, each with dicts of its own.

        If one raises an error, which ends the run, nothing more is told.
        """
        listening, self._listening = self._listening, []
        for callback in listening:
            own = [dict(part) if isinstance(part, Mapping) else part for part in what]
            if getattr(callback, event)(*own):
                self._ended_by = f"{type(callback).__name__}.{event} has returned True"
        self._listening = listening

    def _make_display(self, output: Output) -> Display:
        config = self.config
        return make_display(
            output.out.isatty(),
            out=output.out,
            err=output.err,
            title=printable(f"{config.env}  {self._told(self.run_dir)}"),
            train_seconds=self._time_limit(),
            train_frames=config.train_frames or None,
            shown=config.SHOWN,
            headline=config.HEADLINE,
            is_serial=config.serial,
        )

    def _announce(self, resume_path: str | None) -> None:
        """Log what begins, and all that the user should know of it."""
        log.info("%s%s in %s", run_folder.BEGUN, self.config.env, self._told(self.run_dir))
        if self.config.tuned and not self.config.resume:
            for part in self.config.tuned.split("; "):
                log.info("%s", part)
        for text in [*self._caveats, *slower_than_need_be(self.config, self.shared.env)]:
            log.warning("%s", text)
        if threading.current_thread() is not threading.main_thread():
            log.warning(
                "this is not the main thread, which alone is told of signals: Ctrl-C and "
                "SIGTERM do not end the run in order, train_seconds and train_frames do"
            )
        if resume_path:
            log.info("going on from %s", self._told(resume_path))

    def _told(self, path: str | Path) -> Path:
        return run_folder.told(path, self._started_in)

    @contextmanager
    def _folder_left_in_order(self, log_file: LogFile, writer: MetricsWriter) -> Iterator[None]:
        """The log has the reason of a failure. A run that has learned nothing leaves that alone."""
        try:
            yield
        finally:
            error = sys.exception()
            if error is not None:
                log_file.note(printable(f"{run_folder.FAILED}{reason_of(error)}"))
            is_new = not self.config.resume and self.shared.progress.learner_steps == 0
            if is_new and not self.folder.has_checkpoints() and self.folder.owns():
                with suppress(OSError):
                    writer.discard()
                    self.folder.remove_config()
                    log_file.note(run_folder.UNTRAINED)

    def _keep_folder(self) -> None:
        try:
            if self.folder.keep():
                self._best_saved = None
        except OSError as error:
            self._write_failed("the run's folder", error)

    def _do_as_asked(self) -> None:
        """What somebody has asked for through the run's folder, as `sfrl web` does."""
        if run_folder.take_request(self.run_dir, "stop"):
            self._ended_by = "sfrl web has asked for it"
        has_begun = self.shared.progress.learner_steps > 0  # else it waits for what it would save
        if has_begun and run_folder.take_request(self.run_dir, "checkpoint"):
            log.info("sfrl web has asked for a checkpoint")
            self._request_checkpoint(is_last=False)

    def _supervise(self, display: Display, writer: MetricsWriter) -> None:
        config = self.config
        next_look = 0.0
        next_report = time.monotonic() + config.report_seconds
        next_checkpoint = time.monotonic() + config.checkpoint_seconds
        while not (reason := self._end_reason()):
            self.crew.advance()
            self._collect()
            now = time.monotonic()
            if now >= next_look:
                next_look = now + FOLDER_LOOK_S
                self._keep_folder()
                self._do_as_asked()
                display.refresh()
            if now >= next_report:
                next_report = now + config.report_seconds
                self._report(display, writer)
            if now >= next_checkpoint:
                next_checkpoint = now + config.checkpoint_seconds
                self._request_checkpoint(is_last=False)
        log.info("stopping: %s", reason)

    def _end_reason(self) -> str | None:
        config = self.config
        if self._signals:
            return signal.Signals(self._signals[0]).name
        if 0 < config.train_seconds <= time.monotonic() - self._started_s:
            return f"train_seconds={config.train_seconds:g} have passed"
        if 0 < config.train_frames <= self.shared.progress.env_frames:
            had_them = config.train_frames <= self._first_frame
            remedy = "; raise --train-frames to go on" if had_them else ""
            return f"train_frames={config.train_frames} are reached{remedy}"
        return self._ended_by or None

    def _collect(self) -> None:
        for report in self.crew.take_reports():
            match report:
                case EpisodeEnded(episode_return, length, env_index, info):
                    self.metrics.add_episode(episode_return, length, info)
                    self._tell("episode", episode_return, length, info, env_index)
                case LearnerReport(metrics, lag_counts):
                    self.metrics.add_learner_stats(metrics)
                    self._lag_counts = self._lag_counts + np.asarray(lag_counts)
                case CheckpointSaved(path, best_score, is_last):
                    self._last_checkpoint = path
                    self._is_last_saved |= is_last
                    self._write_problems.pop("the checkpoint", None)
                    if best_score is None:
                        if not is_last:  # which is told of at the end
                            log.info("checkpoint: %s", os.path.basename(path))
                        self._tell("checkpoint", Path(path))
                    else:
                        self._best_saved = best_score
                        self._write_problems.pop("best.pt", None)
                case CheckpointFailed(reason, what):
                    self._write_failed(what, reason)
                case Notice(level, text):
                    log.log(level, "%s", text)

    def _report(self, display: Display, writer: MetricsWriter) -> None:
        progress = self.shared.progress
        record = self.metrics.record(
            env_frames=progress.env_frames,
            env_steps=progress.total_env_steps,
            stage_totals=progress.stage_totals(),
            dropped_reports=self.crew.dropped_reports,
            worker_restarts=int(progress.restarts.sum()),
            write_failures=self._write_failures,
            discarded_steps=progress.discarded_steps(self.shared.buffer.is_filled),
        )
        try:
            if self.folder.is_ours:
                writer.write(record, self._lag_counts.tolist())
        except OSError as error:
            self._write_failed("metrics", error)
        self._tell("report", record)
        try:
            display.update(record)
        except OSError as error:  # the terminal is a file on a full disk, or is gone
            self._write_failed("the display", error)
        self._lag_counts = np.zeros(1, np.int64)

    def _write_failed(self, what: str, error: str | OSError) -> None:
        """Training goes on. What is told at every failure would bury the rest of the log."""
        self._write_failures += 1
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else error
        if self._write_problems.get(what) != reason:
            self._write_problems[what] = reason
            outlook = "" if self.shared.stop.is_set else ", and will be tried again"
            log.warning("%s could not be written%s: %s", what, outlook, reason)

    def _request_checkpoint(self, *, is_last: bool) -> None:
        """Ask for a checkpoint, which is also the best one if the score is a new best."""
        # The score of now, not the best since the last request: it is the weights of now it names.
        score = self.metrics.score
        is_best = score is not None and (self._best_saved is None or score > self._best_saved)
        request = CheckpointRequest(self.metrics.state(), score if is_best else None, is_last)
        if not self.crew.request_checkpoint(request):
            self._write_failed("the checkpoint", "the learner does not take the request")

    def _stop(self) -> list[str]:
        """Save, and end all workers; returns what went wrong meanwhile.

        Whatever is raised in it, no worker is left.
        """
        has_begun = self.shared.progress.learner_steps > 0
        timeout_s = STOP_TIMEOUT_S if has_begun else STARTING_STOP_TIMEOUT_S
        if sys.exception() is not None:  # one has failed: others may hang as well
            timeout_s = min(timeout_s, FAILED_STOP_TIMEOUT_S)
        try:
            self._collect()
            self._write_problems.clear()  # what was told long ago is told again: it is the end
            if has_begun and self.folder.is_ours:
                self._keep_folder()
                self._request_checkpoint(is_last=True)
        finally:
            failures = self.crew.stop(timeout_s)
        self._collect()
        if not has_begun:
            # A first step that ended in this moment is not worth a checkpoint, nor an untruth.
            begun = "only" if self.shared.progress.learner_steps else "not"
            none = f"none, training had {begun} begun"
            last = self._last_checkpoint
            told = none if last is None else self._told(last)
            log.info("%s%s", run_folder.LAST_CHECKPOINT, told)
            return []  # those were killed while they started
        left = self._checkpoint_left()
        if not self._is_last_saved:
            reason = self._write_problems.get("the checkpoint")
            what = "the last checkpoint was not written" + (f" ({reason})" if reason else "")
            failures.append(f"{what}; what is left is {left}")
            log.error("%s", failures[-1])
        elif reason := self._write_problems.get("best.pt"):
            best = "no best.pt" if self._best_saved is None else "the best.pt before it"
            failures.append(
                f"best.pt was not written ({reason}); what is left is {left}, and {best}"
            )
            log.error("%s", failures[-1])
        log.info("%s%s", run_folder.LAST_CHECKPOINT, left)
        return failures

    def _checkpoint_left(self) -> str | Path:
        """The newest one that is there, whatever others may have deleted."""
        if not self.folder.is_ours:
            return "none, for its folder is another run's"
        last = self._last_checkpoint
        if last is None or not os.path.exists(last):
            last = next(map(str, checkpoint.latest_paths(self.run_dir)), None)
        return "none" if last is None else self._told(last)

    def _summary(self) -> Summary:
        progress = self.shared.progress
        seconds = time.monotonic() - self._started_s
        state = self.metrics.state()
        returns = state["episode_returns"]
        return Summary(
            env_frames=progress.env_frames,
            env_steps=progress.total_env_steps,
            seconds=round(seconds, 3),
            frames_per_s=round((progress.env_frames - self._first_frame) / seconds, 1),
            episodes=state["episodes"],
            episode_return_mean=sum(returns) / len(returns) if returns else None,
            run_dir=str(self.run_dir),
        )

    def _time_limit(self) -> float | None:
        """The run's `time_s`, which counts earlier starts, at which --train-seconds end."""
        if not self.config.train_seconds:
            return None
        spent_s = time.monotonic() - self._started_s
        return self.metrics.state()["time_s"] + self.config.train_seconds - spent_s

    def _note_signal(self, signum: int) -> None:
        """Ctrl-C and SIGTERM end the run in order; the second one kills the children at once."""
        now = time.monotonic()
        if not self._signals:
            self._first_signal_s = now
            self.crew.expect_end()
        elif now - self._first_signal_s > INSISTENCE_S:
            self.crew.kill()
        self._signals.append(signum)


def _resolved(config: Config, spec: envs.EnvSpec) -> Config:
    try:
        return resolve(config, spec)
    except ConfigError as error:
        problems = "; ".join(str(error).splitlines())
        raise ConfigError(
            f"a Trainer takes complete settings, which sfrl.train makes of those given: {problems}"
        ) from error


def slower_than_need_be(config: Config, spec: envs.EnvSpec) -> list[str]:
    """Warnings about what costs speed and can be mended."""
    slower, stand_ins = "does its work, slower", {}
    if config.queue == "auto":
        stand_ins["sfrl.ipc._index_queue"] = (
            f"faster-fifo {slower}, and a killed worker ends the run"
        )
    if envs.atari_game(config.env) is not None:
        stand_ins["sfrl.envs._screen"] = f"NumPy {slower}"
    elif any(
        leaf.kind == "image" and max(leaf.shape[1:]) == config.image_size for leaf in spec.leaves
    ):  # one that has been made smaller, it seems
        stand_ins["sfrl.envs._areas"] = f"NumPy {slower}"
    if config.model in ("a3c_cnn", "nature_cnn", "pooled_cnn") and "cuda" not in config.device:
        stand_ins["sfrl.nets._images"] = f"torch {slower}"
        if {"avx2", "amx_tile"} & cpu_flags() == {"avx2"}:  # see `nets/convolve.py`
            stand_ins["sfrl.nets._sparse_conv"] = f"torch {slower}"
    return [
        f"{extension} could not be built, and {stand_in}; "
        f"install a C++ compiler, and this package once more"
        for extension, stand_in in stand_ins.items()
        if not _is_importable(extension)
    ]


def _is_importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
