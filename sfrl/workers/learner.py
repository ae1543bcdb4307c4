"""Learner: full slots -> V-trace -> optimizer steps -> published weights."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfrl.experience.minibatch import LearnerSlots, Minibatch
from sfrl.experience.trajectory_buffer import Owner, TrajectoryBuffer
from sfrl.ipc.channels import Channels
from sfrl.ipc.index_queue import unpack
from sfrl.ipc.mailbox import DELIVERY_TIMEOUT_S, Mailbox
from sfrl.ipc.messages import (
    CheckpointFailed,
    CheckpointRequest,
    CheckpointSaved,
    LearnerReport,
    Report,
)
from sfrl.ipc.progress import Progress
from sfrl.ipc.shared_memory import StopFlag, Stopped
from sfrl.maths import losses
from sfrl.maths.vtrace import vtrace
from sfrl.nets import cuda, distributions
from sfrl.nets.model import ActorCritic
from sfrl.parameters.optimizer import (
    load_portable_state,
    make_optimizer,
    portable_state,
    set_learning_rate,
)
from sfrl.parameters.weights import Weights
from sfrl.records import checkpoint
from sfrl.records.metrics import LEARNER_COUNTERS
from sfrl.records.timing import LEARNER_STAGES, StageTimer
from sfrl.settings.config import Config

MAX_REPORTED_LAG = 127  # the histogram's last bin holds all lags from here on

# Statistics of one optimizer step, in the order of the tensor that `_update` returns. The lags of
# its rows follow them: sum, maximum, and a histogram of MAX_REPORTED_LAG + 1 bins.
STATS = (
    "policy_loss",
    "value_loss",
    "total_loss",
    "entropy",
    "rho_clipped_fraction",
    "ppo_clipped_fraction",
    "approx_kl",
    "explained_variance",
    "dropped_rows",
    "grad_norm",
)
_LOSS, _GRAD_NORM = STATS.index("total_loss"), STATS.index("grad_norm")
_LAG_SUM, _LAG_MAX = len(STATS), len(STATS) + 1
_LAG_COUNTS = slice(len(STATS) + 2, len(STATS) + 2 + MAX_REPORTED_LAG + 1)


class _Training(NamedTuple):
    """What `Learner.finish` has to know of a training batch."""

    slots: list[int]
    num_updates: int


class LearnerError(RuntimeError):
    """Training cannot go on: the loss or its gradient stays non-finite."""


class Learner:
    """Trains on `slots_per_batch` slots at a time: `epochs` passes over them in `minibatches` each.

    A training batch's slots belong to the learner until its last pass, or until a GPU has a copy of
    them; then they go back to their splits. After the last pass the new weights are published.

    Nothing between the first minibatch of a training batch and the last reads a result: a GPU works
    through them by itself, each one CUDA graph, while the next batch's slots are copied to it.
    """

    def __init__(
        self,
        config: Config,
        model: ActorCritic,  # on the device, float32
        precision: torch.dtype,  # of the layers' arithmetic
        buffer: TrajectoryBuffer,
        channels: Channels,
        weights: Weights,
        progress: Progress,
        reports: Mailbox[Report],
        checkpoint_requests: Mailbox[CheckpointRequest],
        stop: StopFlag,
    ) -> None:
        self.config = config
        self.model = model
        self.precision = precision
        self.buffer = buffer
        self.stop = stop
        self.inbox = channels.trajectories
        self.replies = channels.replies
        self.weights = weights
        self.progress = progress
        self.reports = reports
        self.checkpoint_requests = checkpoint_requests
        self.device = next(model.parameters()).device
        self._networks = model.networks()
        self.optimizer = make_optimizer(config, self._networks)
        self.rng = np.random.default_rng(config.seed)  # order of trajectories in minibatches
        self.full_slots: deque[int] = deque()
        self.workers_state: Callable[[], dict[str, Any] | None] = lambda: None  # see `SerialCrew`
        self.dropped_rows = 0
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self.slots = LearnerSlots(buffer, config.slots_per_batch, self.device)
        # What `_update` is told, in tensors, since a graph reads nothing else.
        trajectories = config.batch_size // config.rollout_length
        self._chosen = torch.zeros((2, trajectories), dtype=torch.int64, device=self.device)
        self._version = torch.zeros((), dtype=torch.int64, device=self.device)
        self._table = torch.zeros(  # what it returns, of a whole training batch
            (config.epochs * config.minibatches, _LAG_COUNTS.stop), device=self.device
        )
        use_graphs = self.device.type == "cuda" and config.cuda_graphs == "auto"
        graphs = cuda.Graphs("the learner's minibatch", enabled=use_graphs)
        self._update = cuda.Graphed(self._update_on_chosen, graphs)
        self._stream = cuda.new_stream(self.device)  # last: it waits for what was made here
        # Whether a batch may still be trained on when `train` returns.
        self._runs_ahead = self.device.type == "cuda" and not config.serial
        self._unfinished: _Training | None = None  # whose results have not been looked at
        component = config.num_workers + config.num_policy_workers
        self.timer = StageTimer(LEARNER_STAGES, progress.stage_seconds(component, LEARNER_STAGES))

    @property
    def learner_steps(self) -> int:
        """Optimizer steps since the run began: the version of the policy."""
        return self.progress.learner_steps

    def step(self) -> bool:
        """Train on one batch of slots, if one is there.

        Raises:
            Stopped: the run's last checkpoint has been written.
        """
        if self._serve_checkpoint_requests():
            raise Stopped
        batch_size = self.config.slots_per_batch
        self.full_slots.extend(unpack(m).slot for m in self.inbox.get_many(self.buffer.num_slots))
        if len(self.full_slots) >= batch_size:
            self.timer.lap("wait_trajectories")
            self.train([self.full_slots.popleft() for _ in range(batch_size)])
            return True
        return self.finish()

    def train(self, slots: list[int]) -> None:
        """All epochs on these slots. On a GPU they go on when this returns, until `finish`.

        When the run is stopping it returns after the minibatch at hand.
        """
        for slot in slots:
            self.buffer.check_owner(slot, Owner.LEARNER)
        with torch.cuda.stream(self._stream):
            places = self.slots.load(slots)
            self.finish()  # the batch before: this one's slots were copied meanwhile
            self.slots.take()
            if self.slots.are_copies:
                self._release(slots)
            self.timer.lap("gather")
            set_learning_rate(self.optimizer, self.learning_rate())
            self._version.fill_(self.learner_steps)
            orders = torch.from_numpy(self._orders(places)).to(self.device)
            num_done = 0
            for chosen in orders:
                self._chosen.copy_(chosen)
                self._table[num_done].copy_(self._update())
                num_done += 1
                if not self._runs_ahead:
                    self._count_steps(num_done - 1, num_done)
                self.timer.lap("train")
                if self.stop.is_set:
                    break  # a batch can take minutes on a small machine; the last checkpoint waits
            self._unfinished = _Training(slots, num_done)
        if not self._runs_ahead:
            self.finish()

    def finish(self) -> bool:
        """Give back, publish and report what was trained on last; says whether there was anything.

        Waits for a GPU that is still training.
        """
        if self._unfinished is None:
            return False
        (slots, num_done), self._unfinished = self._unfinished, None
        with torch.cuda.stream(self._stream):
            if self._runs_ahead:
                cuda.sleep_until_done(self._stream)
                self._count_steps(0, num_done)
                self.timer.lap("train")
            if not self.slots.are_copies:
                self._release(slots)
            self.publish()
            self._report(self._table[:num_done].cpu().numpy())
            self.timer.lap("publish")
        return True

    def rehearse(self) -> None:
        """One minibatch forward and backward, of which nothing is kept.

        A GPU whose memory is too small says so at start then, and not in the middle of the run.
        """
        with torch.cuda.stream(self._stream):
            size = self._chosen.shape[1]
            slots, envs = np.divmod(np.arange(size), self.buffer.spec.num_envs)
            self._chosen.copy_(torch.from_numpy(np.stack([slots, envs])))
            batch = self.slots.gather(*self._chosen)
            batch = batch._replace(actions=torch.zeros_like(batch.actions))  # free slots have none
            with self._autocast():
                logits, values = self.model.unroll(batch.obs, batch.rnn_state, batch.valid)
            loss, _, _ = self._loss(batch, logits, values, torch.ones_like(batch.valid[:-1]))
            loss.backward()
            self.optimizer.zero_grad(set_to_none=True)

    def _orders(self, places: list[int]) -> NDArray[np.int64]:
        """[epochs * minibatches, 2, C]: the (slot, environment) of every trajectory once per epoch.

        In random order.
        """
        num_envs = self.buffer.spec.num_envs
        columns = np.array([(place, env) for place in places for env in range(num_envs)])
        orders = []
        for _ in range(self.config.epochs):
            self.rng.shuffle(columns)
            orders += np.split(columns.T.copy(), self.config.minibatches, axis=1)
        return np.stack(orders)

    def _update_on_chosen(self) -> Tensor:
        """One optimizer step, unless the loss or its gradient is not finite.

        It reads no result, so that it can be captured as a graph; but for RMSprop, which can only
        be kept from a step by an if.

        Returns:
            [_LAG_COUNTS.stop] float32: `STATS`, sum and maximum of the lags, their histogram.
        """
        batch = self.slots.gather(*self._chosen)
        self.timer.lap("gather")
        lag = self._version - batch.policy_version  # [T, C], optimizer steps since the row's policy
        with self._autocast():
            logits, values = self.model.unroll(batch.obs, batch.rnn_state, batch.valid)
        mask = batch.valid[:-1] & (lag <= self.config.max_policy_lag)
        loss, stats, vs = self._loss(batch, logits, values, mask)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = self._clip_gradients()
        is_finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self._step_optimizer(is_finite)
        self._version += is_finite
        self.model.after_optimizer_step(vs, mask, is_finite)
        update = torch.stack([*stats, grad_norm]).detach()
        return torch.cat([update, _lag_stats(lag, batch.valid[:-1])])

    def _clip_gradients(self) -> Tensor:
        """Scale each network's gradient down to `max_grad_norm`; returns the norm of all before."""
        limit = self.config.max_grad_norm
        norms = [nn.utils.clip_grad_norm_(network, limit) for network in self._networks]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def _step_optimizer(self, is_finite: Tensor) -> None:
        if isinstance(self.optimizer, torch.optim.Adam):
            # As torch.amp.GradScaler tells a fused Adam, on the device, to leave everything alone.
            self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif is_finite:
            self.optimizer.step()

    def _autocast(self) -> torch.autocast:
        is_lower = self.precision != torch.float32
        # The cache of cast weights, each of which is used once, would outlive a graph's capture.
        return torch.autocast(
            self.device.type, self.precision, enabled=is_lower, cache_enabled=False
        )

    def _loss(
        self,
        batch: Minibatch,
        logits: Tensor,  # [T+1, C, A] float32
        values: Tensor,  # [T+1, C] float32
        mask: Tensor,  # [T, C] bool, the rows to learn from
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The loss, the statistics `STATS[:-1]`, and V-trace's targets [T, C]."""
        config = self.config
        log_probs = distributions.log_prob(logits[:-1], batch.actions)  # [T, C]
        log_rhos = log_probs.detach() - batch.log_probs
        returns = vtrace(
            log_rhos,
            # `truncated` needs no term here: the row after it is invalid, which cuts the trace
            # there, and its value, of the episode's true final observation, is the bootstrap.
            discounts=config.gamma * (~batch.terminated).float(),
            rewards=self._shape_rewards(batch.rewards),
            values=values.detach(),
            valid=batch.valid[:-1],
            rho_clip=config.rho_clip,
            c_clip=config.c_clip,
            lambda_=config.trace_lambda,
        )
        advantages = returns.advantages
        if config.normalize_advantages:
            advantages = losses.normalize_advantages(advantages, mask)
        # PPO's ratio corrects for the behavior policy itself; V-trace's gradient needs rho.
        if config.loss == "appo":
            policy_loss = losses.ppo_policy_loss(
                log_probs, batch.log_probs, advantages, mask, config.ppo_clip
            )
        else:
            policy_loss = losses.vtrace_policy_loss(
                log_probs, returns.clipped_rhos, advantages, mask
            )
        normalize = self.model.normalize_returns
        value_loss = losses.value_loss(normalize(values[:-1]), normalize(returns.vs), mask)
        entropy = losses.masked_mean(distributions.entropy(logits[:-1]), mask)
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy

        with torch.no_grad():
            rhos = log_rhos.exp()
            stats = [
                policy_loss,
                value_loss,
                loss,
                entropy,
                losses.masked_mean((rhos > config.rho_clip).float(), mask),
                losses.masked_mean(((rhos - 1).abs() > config.ppo_clip).float(), mask),
                losses.masked_mean(rhos - 1 - log_rhos, mask),  # of KL(behavior || target)
                losses.explained_variance(values[:-1], returns.vs, mask),
                (batch.valid[:-1] & ~mask).sum().float(),
            ]
        return loss, stats, returns.vs

    def _shape_rewards(self, rewards: Tensor) -> Tensor:
        if self.config.reward_clip == "sign":
            rewards = rewards.sign()
        return rewards * self.config.reward_scale

    def _count_steps(self, first: int, end: int) -> None:
        """The training batch's minibatches from `first` to `end` were steps, or were skipped."""
        for stats in self._table[first:end, : len(STATS)].cpu().numpy():
            if np.isfinite(stats[[_LOSS, _GRAD_NORM]]).all():
                self.progress.learner_steps += 1
                self._skipped_in_a_row = 0
                continue
            self.skipped_steps += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self.config.max_skipped_steps:
                raise LearnerError(
                    f"{self._skipped_in_a_row} optimizer steps in a row had a non-finite loss or "
                    f"gradient (max_skipped_steps={self.config.max_skipped_steps}); lower "
                    f"--learning-rate, or look for non-finite observations and rewards"
                )

    def learning_rate(self) -> float:
        """Now. A linear schedule counts emulated frames of the whole run, resumed ones included."""
        config = self.config
        if config.lr_schedule == "constant":
            return config.learning_rate
        return config.learning_rate * max(0.0, 1 - self.progress.env_frames / config.train_frames)

    def _release(self, slots: list[int]) -> None:
        config, buffer = self.config, self.buffer
        for slot in slots:
            worker = slot // (config.slots_per_split * config.num_splits)
            self.progress.learned_steps[slot] += int(buffer.valid[slot, :-1].sum())
            buffer.transfer(slot, Owner.LEARNER, Owner.FREE)
            message = buffer.message(slot, config.rollout_length)
            # The slot is the split's again from here on: nothing of it may be read later.
            buffer.released[slot] = buffer.generation[slot]
            self.replies[worker].put(message, config.num_policy_workers)

    def publish(self) -> None:
        """Make the present weights those that the policy workers act with."""
        self.weights.publish(self.model, self.learner_steps)

    def _report(self, table: NDArray[np.float32]) -> None:
        """`table`: [updates, _LAG_COUNTS.stop], what `_update` returned."""
        stats = table[:, : len(STATS)]
        applied = stats[np.isfinite(stats).all(axis=1)]  # what was skipped must not hide the rest
        means = applied.mean(axis=0).tolist() if len(applied) else []
        metrics: dict[str, float] = dict(zip(STATS, means, strict=False))
        self.dropped_rows += int(np.nansum(stats[:, STATS.index("dropped_rows")]))
        metrics |= {
            "learner_steps": self.learner_steps,
            "dropped_rows": self.dropped_rows,
            "skipped_steps": self.skipped_steps,
            "learning_rate": self.learning_rate(),
        }
        lag_counts = table[:, _LAG_COUNTS].sum(axis=0, dtype=np.int64)
        if num_rows := int(lag_counts.sum()):  # else every row only reset
            metrics |= {
                "policy_lag_mean": float(table[:, _LAG_SUM].sum(dtype=np.float64)) / num_rows,
                "policy_lag_max": float(table[:, _LAG_MAX].max()),
            }
        self.reports.put(LearnerReport(metrics, lag_counts.tolist()))

    # --- checkpoints ---
    def _serve_checkpoint_requests(self) -> bool:
        """Write the checkpoint that was asked for, if any; say whether it is the run's last."""
        requests = self.checkpoint_requests.get_all()
        if not requests:
            return False
        self.finish()
        request = requests[-1]  # the newest knows all that the earlier ones knew
        state = self.state()
        # The trainer asked some batches ago: its counters are behind the weights saved here.
        counters = {name: state["counters"][name] for name in LEARNER_COUNTERS}
        state["metrics"] = {**request.metrics, "counters": counters}
        best_score = max((r.best_score for r in requests if r.best_score is not None), default=None)
        run_dir, frames = self.config.run_dir, state["counters"]["env_frames"]
        self.progress.is_saving = True
        what = "the checkpoint"
        try:
            path = checkpoint.save(run_dir, state, frames, keep=self.config.keep_checkpoints)
            self._tell(CheckpointSaved(str(path), None, request.is_last))
            self.timer.lap("checkpoint")
            if best_score is not None:
                what = "best.pt"
                checkpoint.save_best(run_dir, state, best_score)
                self._tell(CheckpointSaved(str(path), best_score))
        except (
            OSError,
            checkpoint.CheckpointError,
        ) as error:  # full, or returns rubbish
            reason = getattr(error, "strerror", None) or str(error)
            self._tell(CheckpointFailed(reason, what))
        self.progress.is_saving = False
        self.timer.lap("checkpoint")
        return request.is_last

    def _tell(self, report: Report) -> None:
        """A report that must not be dropped for want of room."""
        self.reports.put(report, DELIVERY_TIMEOUT_S)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the learner. Normalization statistics are model buffers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": portable_state(self.optimizer),
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
            self.model.load_weights(state["model"])
            load_portable_state(self.optimizer, state["optimizer"])
            self.progress.learner_steps = state["counters"]["learner_steps"]
            self.dropped_rows = state["counters"]["dropped_rows"]
            self.skipped_steps = state["counters"]["skipped_steps"]
            self.rng.bit_generator.state = state["rng"]["numpy"]
            torch.set_rng_state(state["rng"]["torch"])
        except checkpoint.MISFITS as error:
            raise checkpoint.CheckpointError(
                f"the checkpoint does not fit this run ({type(error).__name__}: "
                f"{checkpoint.in_one_line(error)}); go on with the code and settings that wrote "
                f"it, or start a new run"
            ) from error

    def wait(self, timeout_s: float) -> None:
        self.inbox.wait(timeout_s)
        self.timer.lap("wait_trajectories")

    def close(self) -> None:
        """Write the checkpoint that the trainer asked for when it stopped the run."""
        self.finish()
        self._serve_checkpoint_requests()


def _lag_stats(lag: Tensor, valid: Tensor) -> Tensor:
    """[_LAG_COUNTS.stop - _LAG_SUM] float32 of [T, C] lags: sum, maximum and histogram.

    Only rows that are valid count. The shape does not depend on them, as `bincount`'s would.
    """
    known = torch.where(valid, lag, 0)
    counts = torch.zeros(MAX_REPORTED_LAG + 1, device=lag.device)
    bins = known.clamp(0, MAX_REPORTED_LAG).flatten()
    counts.scatter_add_(0, bins, valid.flatten().float())
    return torch.cat([torch.stack([known.sum(), known.max()]).float(), counts])
