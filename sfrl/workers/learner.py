"""Learner: full slots -> the algorithm's loss -> optimizer steps -> published weights."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Algorithm
from sfrl.envs.logs import own_logger
from sfrl.experience.experience import make_experience
from sfrl.experience.replay import Replay
from sfrl.experience.slot_inbox import SlotInbox
from sfrl.experience.trajectory_buffer import TrajectoryBuffer
from sfrl.ipc.channels import Channels
from sfrl.ipc.index_queue import IndexQueue
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, EndsRun, LearnerReport, Report
from sfrl.ipc.progress import Progress
from sfrl.ipc.shared_memory import Stopped
from sfrl.ipc.topology import Role
from sfrl.nets import cuda
from sfrl.nets.model import Network
from sfrl.parameters.parameters import Parameters
from sfrl.records import checkpoint, memory_file
from sfrl.records.timing import LEARNER_STAGES, StageTimer
from sfrl.settings.config import Config
from sfrl.systems import SYSTEMS
from sfrl.workers.checkpoint_service import CheckpointService
from sfrl.workers.statistics import UpdateStatistics

log = own_logger(__name__)

REPORT_INTERVAL_S = 0.2
ROOT_FRAMES = 250_000  # after three times as many, a schedule of the root has halved the rate


class _Training(NamedTuple):
    """A training batch: its slots, and the minibatches that are still to come."""

    slots: list[int]
    orders: deque[Tensor]  # [2, C] each, see `Experience.orders`


class LearnerError(EndsRun):
    """Training cannot go on: the loss or its gradient stays non-finite."""


class Learner:
    """Takes in `slots_per_batch` slots at a time, and trains on the minibatches that are then due.

    Which these are, the experience says: some passes over the slots, or draws from a memory. A
    training batch's slots belong to the learner until its last minibatch, or until it has a copy of
    them. After the last one the new weights are published; then the slots go back to their splits.

    Where there are several, each trains on the slots of its own rollout workers, and on parameters
    that all of them share. A step is one minibatch. Nothing between the first one of a training
    batch and the last reads a result: a GPU works through them by itself, each one CUDA graph,
    while the next batch's slots are copied to it.
    """

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm,
        model: Network,  # on the device, float32
        buffer: TrajectoryBuffer,
        channels: Channels,
        parameters: Parameters,  # of the model
        progress: Progress,
        reports: Mailbox[Report],
        checkpoint_requests: Mailbox[CheckpointRequest],
        *,
        index: int = 0,
        saves_alone: AbstractContextManager[None] | None = None,  # see `CheckpointService`
        acts_in_process: bool = False,  # policy workers in this process act with the model
    ) -> None:
        role = Role("learner", index)
        self.config = config
        self.algorithm = algorithm
        self.model = model
        self.slots = SlotInbox(buffer, channels, progress, role)
        self.inbox = self.slots.queue
        self.progress = progress
        self.reports = reports
        self.device = next(model.parameters()).device
        self.parameters = parameters
        self.updates = progress.updates[index]  # [3], its own counts
        # Which trajectories are in a minibatch.
        self.rng = np.random.default_rng([config.seed, index] if index else config.seed)
        self.workers_state: Callable[[], dict[str, Any] | None] = lambda: None  # see `SerialCrew`
        slots = channels.topology.slots
        self.experience = make_experience(config, buffer, slots, self.device)
        self.lacks_memory = False  # what an earlier start held in it; see `load_memory`
        self.memory_env_steps: int | None = None  # of the run when what was read was written
        self.checkpoints = CheckpointService(
            config,
            progress,
            checkpoint_requests,
            reports,
            self.state,
            self._memory,
            index,
            saves_alone,
        )
        is_synchronous = SYSTEMS[config.system].is_synchronous
        self._gives_back_at_once = self.experience.are_copies and not is_synchronous
        # What `_update` is told, in tensors, since a graph reads nothing else.
        shape = 2, self.experience.num_chosen
        self._chosen = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self._version = torch.zeros((), dtype=torch.int64, device=self.device)
        names = ("total_loss", "grad_norm", *config.STATISTICS)
        self.statistics = UpdateStatistics(names, self.device)
        self._next_report_s = 0.0  # on the monotonic clock
        use_graphs = self.device.type == "cuda" and config.cuda_graphs == "auto"
        graphs = cuda.Graphs("the learner's minibatch", enabled=use_graphs)
        self._update = cuda.Graphed(self._update_on_chosen, graphs)
        self._stream = cuda.new_stream(self.device)  # last: it waits for what was made here
        # Whether a batch may still be trained on when the host has launched all of it. Not where
        # this process acts with the weights, and must know of which step they are.
        self._runs_ahead = self.device.type == "cuda" and not acts_in_process
        self._launched: list[torch.cuda.Event | None] = []  # minibatches, where it runs ahead
        self._training: _Training | None = None
        self.timer = StageTimer(LEARNER_STAGES, progress.stage_seconds(role))

    @property
    def learner_steps(self) -> int:
        """Optimizer steps since the run began, of all learners: the version of the policy."""
        return self.progress.learner_steps

    @property
    def skipped_steps(self) -> int:
        """Likewise, those left out because the loss or its gradient was not finite."""
        return int(self.progress.updates[:, 1].sum())

    @property
    def dropped_rows(self) -> int:
        """Likewise, rows that were not learned from because their policy was too old."""
        return int(self.progress.updates[:, 2].sum())

    @property
    def is_training(self) -> bool:
        """Whether minibatches of a training batch are still to come."""
        return self._training is not None and len(self._training.orders) > 0

    def step(self) -> bool:
        """Train on one minibatch, of a new training batch if its slots are there and one is due.

        Raises:
            Stopped: the run's last checkpoint has been written.
        """
        if not self.is_training:
            if self._serve_checkpoint_requests():
                raise Stopped
            slots = self.slots.take(self.config.slots_per_batch)
            if not slots:
                return self.finish()
            self.timer.lap("wait_trajectories")
            self.begin(slots)
        if self.is_training:
            self._train_on_next()
        return True

    def begin(self, slots: list[int]) -> None:
        """A training batch, if minibatches are due once these slots have been taken in."""
        experience = self.experience
        with torch.cuda.stream(self._stream):
            places = experience.load(slots)
            self.finish()  # the batch before: this one's slots were copied meanwhile
            experience.take()
            if self._gives_back_at_once:
                self.slots.give_back(slots)
            self.timer.lap("gather")
            self.parameters.set_learning_rate(self.learning_rate())
            self._version.fill_(self.learner_steps)
            orders = torch.from_numpy(experience.orders(places, self.rng)).to(self.device)
        if len(orders):
            self._training = _Training(slots, deque(orders))

    def _train_on_next(self) -> None:
        assert self._training is not None
        with torch.cuda.stream(self._stream):
            self._chosen.copy_(self._training.orders.popleft())
            self._update()
            if self._runs_ahead:
                self._launched.append(cuda.mark(self._stream))
            else:
                self._count_steps()
            self.timer.lap("train")
        if not self.is_training and not self._runs_ahead:
            self.finish()

    def finish(self) -> bool:
        """End the training batch, whatever of it is still to come; whether there was one.

        The weights are published, its slots go back. Waits for a GPU that is still training.
        """
        if self._training is None:
            return False
        (slots, _), self._training = self._training, None
        with torch.cuda.stream(self._stream):
            if self._runs_ahead:
                for launched in self._launched:
                    cuda.sleep_until(launched)
                    self.timer.lap("train")  # the watchdog waits for a minibatch, not for all
                self._launched.clear()
                self._count_steps()
            self.publish()  # first: whoever gets a slot back may act with these weights
            if not self._gives_back_at_once:
                self.slots.give_back(slots)
            if time.monotonic() >= self._next_report_s:
                self.report()
            self.timer.lap("publish")
        return True

    def warm_up(self) -> None:
        """One minibatch forward and backward, of which nothing is kept.

        A GPU whose memory is too small says so at start then, and not in the middle of the run.
        """
        with torch.cuda.stream(self._stream):
            batch = self.experience.gather(*self._chosen)
            acted = {name: torch.zeros_like(field) for name, field in batch.acted.items()}
            batch = batch._replace(acted=acted)  # free slots have none
            target = self.parameters.target
            self.algorithm.loss(self.model, target, batch, self._version).total.backward()
            self.parameters.drop_gradients()

    def _update_on_chosen(self) -> Tensor:
        """One optimizer step on the chosen trajectories; it reads no result: see `cuda.Graphed`.

        Returns:
            Scalar bool, whether the step was applied.
        """
        batch = self.experience.gather(*self._chosen)
        self.timer.lap("gather")
        loss = self.algorithm.loss(self.model, self.parameters.target, batch, self._version)
        has_rows = loss.mask.any()
        applied, grad_norm = self.parameters.step(
            loss.total,
            lambda model, applied: self.algorithm.after_update(model, batch, loss, applied),
            loss.reach,
            has_rows,
        )
        own = {"total_loss": loss.total.detach(), "grad_norm": grad_norm}
        self.statistics.add(own | loss.statistics, applied, has_rows)
        self.statistics.add_rows(self._version - batch.policy_version, batch.valid[:-1], loss.mask)
        self._version += applied
        return applied

    def _count_steps(self) -> None:
        """The minibatches since the last call were steps, or were skipped."""
        applied, skipped, in_a_row = self.statistics.count()
        self.updates[:2] += applied, skipped
        if in_a_row >= self.config.max_skipped_steps:
            raise LearnerError(
                f"{in_a_row} optimizer steps in a row had a non-finite loss or gradient "
                f"(max_skipped_steps={self.config.max_skipped_steps}); lower --learning-rate, or "
                f"look for observations and rewards that are huge or not finite"
            )

    def learning_rate(self) -> float:
        """Now. Schedules count emulated frames of the whole run, resumed ones included."""
        config, frames = self.config, self.progress.env_frames
        match config.lr_schedule:
            case "linear":
                return config.learning_rate * max(0.0, 1 - frames / config.train_frames)
            case "root":
                return config.learning_rate / math.sqrt(1 + frames / ROOT_FRAMES)
            case "constant":
                return config.learning_rate

    def publish(self) -> None:
        """Make the present weights those that the policy workers act with."""
        self.parameters.publish(self.learner_steps)

    def report(self) -> None:
        """Tell of the updates since the last report. Between training batches it waits for none."""
        self._next_report_s = time.monotonic() + REPORT_INTERVAL_S
        means, dropped_rows, lag_counts = self.statistics.take()
        self.updates[2] += dropped_rows
        metrics = {
            **means,
            "learner_steps": self.learner_steps,
            "dropped_rows": self.dropped_rows,
            "skipped_steps": self.skipped_steps,
            "learning_rate": self.learning_rate(),
        }
        self.reports.put(LearnerReport(metrics, lag_counts))

    # --- checkpoints ---
    def _serve_checkpoint_requests(self) -> bool:
        """Write the checkpoint that was asked for, if any; say whether it is the run's last."""
        request = self.checkpoints.serve()
        if request is None:
            return False
        self.timer.lap("checkpoint")
        return request.is_last

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the learner, between two training batches."""
        with torch.cuda.stream(self._stream):
            self.finish()
            self.report()  # which counts the rows dropped
            return self._state()

    def _state(self) -> dict[str, Any]:
        return {
            **self.parameters.state(),
            "counters": {
                "env_steps": self.progress.total_env_steps,
                "env_frames": self.progress.env_frames,
                "learner_steps": self.learner_steps,
                "dropped_rows": self.dropped_rows,
                "skipped_steps": self.skipped_steps,
            },
            "config": dataclasses.asdict(self.config),
            "rng": {"numpy": self.rng.bit_generator.state, "torch": torch.get_rng_state()},
            "workers": self.workers_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Decisions of earlier starts are the trainer's to restore.

        Raises:
            checkpoint.CheckpointError: it is of another model or optimizer, or not a checkpoint.
        """
        try:
            self.parameters.load_state(state)
            counters = state["counters"]
            self.updates[:] = [
                counters[n] for n in ("learner_steps", "skipped_steps", "dropped_rows")
            ]
            self.rng.bit_generator.state = state["rng"]["numpy"]
            torch.set_rng_state(state["rng"]["torch"])
        except checkpoint.MISMATCHES as error:
            raise checkpoint.CheckpointError(
                f"the checkpoint does not fit this run ({type(error).__name__}: "
                f"{checkpoint.in_one_line(error)}); go on with the code and settings that wrote "
                f"it, or start a new run"
            ) from error

    def load_memory(self) -> None:
        """What was written at the run's end; else it is filled again, before learning goes on."""
        self.lacks_memory = True
        path = memory_file.path_in(self.config.run_dir)
        try:
            run_dir, steps = self.config.run_dir, self.learner_steps
            # Laps tell the watchdog that it gets on.
            told = partial(self.timer.lap, "checkpoint")
            with memory_file.opened(run_dir, steps, told) as saved:
                if saved is None:
                    log.info("no memory was written, as after a kill; it is filled again")
                    return
                self.experience.load_state(saved.arrays)
            self.memory_env_steps = saved.env_steps
            self.lacks_memory = False
            log.info("the memory goes on from %s", path)
        except (memory_file.MemoryFileError, *checkpoint.MISMATCHES) as error:
            log.warning("%s is not used: %s; the memory is filled again", path, error)

    def _memory(self) -> dict[str, Any]:
        """What is written beside the run's last checkpoint.

        Nothing where that of an earlier start is there and could not be read, and this one's is
        not enough to learn from: the next start may read it, with other settings.
        """
        memory = self.experience
        is_young = isinstance(memory, Replay) and memory.num_decisions < memory.spec.min_size
        if self.lacks_memory and is_young and memory_file.path_in(self.config.run_dir).exists():
            return {}
        return memory.state()

    def wait(self, timeout_s: float, others: Sequence[IndexQueue] = ()) -> None:
        self.inbox.wait(timeout_s, others)
        self.waited()

    def waited(self) -> None:
        self.timer.lap("wait_trajectories")

    def close(self) -> None:
        """Write the checkpoint that the trainer asked for when it stopped the run."""
        self.finish()
        self._serve_checkpoint_requests()


class OwnWeights:
    """The learner's own, for a policy worker in its process: they cross none.

    A `WeightsSource`. The two take turns, so that no weight changes while one is acted with, nor
    between a backward pass and its step.
    """

    def __init__(self, learner: Learner) -> None:
        self.version = -1
        self._learner = learner
        self._pairs: list[tuple[Tensor, Tensor]] = []  # a tensor to act with, and the learner's

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> bool:
        version = self._learner.learner_steps
        if version == self.version:
            return False
        self._learner.parameters.pull()
        if not self._pairs:
            tensors = model.state_dict().values(), self._learner.model.state_dict().values()
            self._pairs = list(zip(*tensors, strict=True))
        for mine, learners in self._pairs:
            mine.copy_(learners)
        if self._learner.device.type == "cuda":  # before the next step writes them, on its stream
            cuda.sleep_until(cuda.mark(torch.cuda.current_stream()))
        self.version = version
        return True
