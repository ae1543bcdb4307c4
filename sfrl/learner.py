"""Learner: full slots -> V-trace -> optimizer steps -> published weights."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfrl import checkpoint, distributions, losses
from sfrl.channels import Channels
from sfrl.config import Config
from sfrl.index_queue import unpack
from sfrl.metrics import LEARNER_COUNTERS
from sfrl.model import ActorCritic
from sfrl.process import (
    DELIVERY_TIMEOUT_S,
    CheckpointFailed,
    CheckpointRequest,
    CheckpointSaved,
    LearnerReport,
    Mailbox,
    Report,
)
from sfrl.progress import Progress
from sfrl.shared_memory import StopFlag, Stopped
from sfrl.timing import LEARNER_STAGES, StageTimer
from sfrl.trajectory_buffer import Owner, TrajectoryBuffer
from sfrl.vtrace import vtrace
from sfrl.weights import Weights

MAX_REPORTED_LAG = 127  # the histogram's last bin holds all lags from here on


# Statistics of one optimizer step, in the order of the tensor that `_update` returns.
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


class LearnerError(RuntimeError):
    """Training cannot go on: the loss or its gradient stays non-finite."""


class Minibatch(NamedTuple):
    """C whole trajectories, time first. obs and valid have one row more than the rest."""

    obs: Tensor  # [T+1, C, *obs_shape]
    valid: Tensor  # [T+1, C] bool
    rnn_state: Tensor | None  # [C, H] before row 0
    actions: Tensor  # [T, C] int64
    log_probs: Tensor  # [T, C] of the behavior policy
    rewards: Tensor  # [T, C] raw
    terminated: Tensor  # [T, C] bool
    policy_version: Tensor  # [T, C] int64


class Learner:
    """Trains on `slots_per_batch` slots at a time: `epochs` passes over them in `minibatches` each.

    A training batch's slots belong to the learner until its last pass; then they go back to their
    splits, and the new weights are published.
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
        self.optimizer = _make_optimizer(config, model)
        self.rng = np.random.default_rng(config.seed)  # order of trajectories in minibatches
        self.full_slots: deque[int] = deque()
        self.workers_state: Callable[[], dict[str, Any] | None] = lambda: None  # see `SerialCrew`
        self.dropped_rows = 0
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self.obs = torch.from_numpy(buffer.obs)  # [S, T+1, N, *obs_shape]
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
        if len(self.full_slots) < batch_size:
            return False
        self.timer.lap("wait_trajectories")
        self.train([self.full_slots.popleft() for _ in range(batch_size)])
        return True

    def train(self, slots: list[int]) -> None:
        """All epochs on these slots; gives them back and publishes the weights.

        When the run is stopping it returns after the minibatch at hand.
        """
        for slot in slots:
            self.buffer.check_owner(slot, Owner.LEARNER)
        _set_learning_rate(self.optimizer, self.learning_rate())
        stats: list[Tensor] = []
        lags: list[Tensor] = []
        for minibatch in self._minibatches(slots):
            self.timer.lap("gather")
            lag = self.learner_steps - minibatch.policy_version
            stats.append(self._update(minibatch, lag))
            lags.append(lag[minibatch.valid[:-1]])
            self.timer.lap("train")
            if self.stop.is_set:
                break  # a batch can take minutes on a small machine; the last checkpoint waits
        for slot in slots:
            self._release(slot)
        self.publish()
        self._report(stats, torch.cat(lags))
        self.timer.lap("publish")

    def rehearse(self) -> None:
        """One minibatch forward and backward, of which nothing is kept.

        A GPU whose memory is too small says so at start then, and not in the middle of the run.
        """
        size = self.config.batch_size // self.config.rollout_length
        slots, envs = np.divmod(np.arange(size), self.buffer.spec.num_envs)
        batch = self._gather(slots % self.buffer.num_slots, envs)
        batch = batch._replace(actions=torch.zeros_like(batch.actions))  # free slots have none
        with self._autocast():
            logits, values = self.model.unroll(batch.obs, batch.rnn_state, batch.valid)
        loss, _, _ = self._loss(batch, logits, values, torch.ones_like(batch.valid[:-1]))
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _minibatches(self, slots: list[int]) -> Iterator[Minibatch]:
        """Every trajectory once per epoch, in random order."""
        num_envs = self.buffer.spec.num_envs
        columns = np.array([(slot, env) for slot in slots for env in range(num_envs)])
        for _ in range(self.config.epochs):
            self.rng.shuffle(columns)
            for chosen in np.split(columns, self.config.minibatches):
                yield self._gather(chosen[:, 0], chosen[:, 1])

    def _gather(self, slots: NDArray[np.int64], envs: NDArray[np.int64]) -> Minibatch:
        """Copy the trajectories (slots[i], envs[i]) out of shared memory, to the device."""

        def columns(field: NDArray[Any]) -> Tensor:  # [S, T, N] -> [T, C]
            return torch.from_numpy(field[slots, :, envs].swapaxes(0, 1).copy()).to(self.device)

        buffer = self.buffer
        obs = torch.stack([self.obs[s, :, n] for s, n in zip(slots, envs, strict=True)], dim=1)
        rnn_state = None
        if buffer.spec.rnn_size:
            rnn_state = torch.from_numpy(buffer.rnn_state[slots, envs]).to(self.device)
        return Minibatch(
            obs=obs.to(self.device),
            valid=columns(buffer.valid),
            rnn_state=rnn_state,
            actions=columns(buffer.actions),
            log_probs=columns(buffer.log_probs),
            rewards=columns(buffer.rewards),
            terminated=columns(buffer.terminated),
            policy_version=columns(
                np.broadcast_to(buffer.policy_version[..., None], buffer.actions.shape)
            ),
        )

    def _update(self, batch: Minibatch, lag: Tensor) -> Tensor:
        """One optimizer step, unless the loss or its gradient is not finite.

        Args:
            lag: [T, C] int64, optimizer steps since the row's policy.

        Returns:
            [len(STATS)] float32, in the order of `STATS`.
        """
        with self._autocast():
            logits, values = self.model.unroll(batch.obs, batch.rnn_state, batch.valid)
        mask = batch.valid[:-1] & (lag <= self.config.max_policy_lag)
        loss, stats, vs = self._loss(batch, logits, values, mask)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if bool(torch.isfinite(loss) & torch.isfinite(grad_norm)):
            self.optimizer.step()
            self.progress.learner_steps += 1
            self._skipped_in_a_row = 0
            self.model.after_optimizer_step(vs, mask)
        else:
            self._skip_step()
        return torch.stack([*stats, grad_norm]).detach()

    def _autocast(self) -> torch.autocast:
        is_lower = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=is_lower)

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
        # PPO's ratio corrects for the behavior policy itself; V-trace's gradient needs rho.
        use_ppo = config.loss == "appo"
        advantages = returns.advantages if use_ppo else returns.pg_advantages
        if config.normalize_advantages:
            advantages = losses.normalize_advantages(advantages, mask)
        if use_ppo:
            policy_loss = losses.ppo_policy_loss(
                log_probs, batch.log_probs, advantages, mask, config.ppo_clip
            )
        else:
            policy_loss = losses.vtrace_policy_loss(log_probs, advantages, mask)
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

    def _skip_step(self) -> None:
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

    def _release(self, slot: int) -> None:
        config = self.config
        worker = slot // (config.slots_per_split * config.num_splits)
        buffer = self.buffer
        self.progress.learned_steps[slot] += int(buffer.valid[slot, :-1].sum())
        buffer.transfer(slot, Owner.LEARNER, Owner.FREE)
        message = buffer.message(slot, config.rollout_length)
        # The slot is the split's again from here on: nothing of it may be read later.
        buffer.released[slot] = buffer.generation[slot]
        self.replies[worker].put(message, config.num_policy_workers)

    def publish(self) -> None:
        """Make the present weights those that the policy workers act with."""
        self.weights.publish(self.model, self.learner_steps)

    def _report(self, stats: list[Tensor], lags: Tensor) -> None:
        table = torch.stack(stats).cpu().numpy()  # [updates, len(STATS)]
        applied = table[np.isfinite(table).all(axis=1)]  # what was skipped must not hide the rest
        means = applied.mean(axis=0).tolist() if len(applied) else []
        metrics: dict[str, float] = dict(zip(STATS, means, strict=False))
        self.dropped_rows += int(np.nansum(table[:, STATS.index("dropped_rows")]))
        counts = torch.bincount(lags.clamp(max=MAX_REPORTED_LAG), minlength=MAX_REPORTED_LAG + 1)
        metrics |= {
            "learner_steps": self.learner_steps,
            "dropped_rows": self.dropped_rows,
            "skipped_steps": self.skipped_steps,
            "learning_rate": self.learning_rate(),
        }
        if len(lags) > 0:  # else every row only reset
            metrics |= {
                "policy_lag_mean": float(lags.float().mean()),
                "policy_lag_max": float(lags.max()),
            }
        self.reports.put(LearnerReport(metrics, counts.tolist()))

    # --- checkpoints ---
    def _serve_checkpoint_requests(self) -> bool:
        """Write the checkpoint that was asked for, if any; say whether it is the run's last."""
        requests = self.checkpoint_requests.get_all()
        if not requests:
            return False
        request = requests[-1]  # the newest knows all that the earlier ones knew
        state = self.state()
        # The trainer asked some batches ago: its counters are behind the weights saved here.
        counters = {name: state["counters"][name] for name in LEARNER_COUNTERS}
        state["metrics"] = {**request.metrics, "counters": counters}
        best_score = max((r.best_score for r in requests if r.best_score is not None), default=None)
        run_dir, frames = self.config.run_dir, state["counters"]["env_frames"]
        try:
            path = checkpoint.save(run_dir, state, frames, keep=self.config.keep_checkpoints)
            self._tell(CheckpointSaved(str(path), None))
            self.timer.lap("checkpoint")
            if best_score is not None:
                checkpoint.save_best(run_dir, state, best_score)
                self._tell(CheckpointSaved(str(path), best_score))
        except (
            OSError,
            checkpoint.CheckpointError,
        ) as error:  # full, or returns rubbish
            self._tell(CheckpointFailed(getattr(error, "strerror", None) or str(error)))
        self.timer.lap("checkpoint")
        return request.is_last

    def _tell(self, report: Report) -> None:
        """A report that must not be dropped for want of room."""
        self.reports.put(report, DELIVERY_TIMEOUT_S)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the learner. Normalization statistics are model buffers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
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
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._check_optimizer()
            self.progress.learner_steps = state["counters"]["learner_steps"]
            self.dropped_rows = state["counters"]["dropped_rows"]
            self.skipped_steps = state["counters"]["skipped_steps"]
            self.rng.bit_generator.state = state["rng"]["numpy"]
            torch.set_rng_state(state["rng"]["torch"])
        except checkpoint.MISFITS as error:
            raise checkpoint.CheckpointError(
                f"the checkpoint does not fit this run ({type(error).__name__}: {error}); go on "
                f"with the code and the settings that wrote it, or start a new run"
            ) from error

    def _check_optimizer(self) -> None:
        """Raises ValueError if what it has loaded is not of the parameters' shapes."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                for name, value in self.optimizer.state[parameter].items():
                    if not isinstance(value, Tensor) or value.shape not in ((), parameter.shape):
                        raise ValueError(
                            f"{name} of a parameter {list(parameter.shape)} is {value!r:.40}"
                        )

    def wait(self, timeout_s: float) -> None:
        self.inbox.wait(timeout_s)
        self.timer.lap("wait_trajectories")

    def close(self) -> None:
        """Write the checkpoint that the trainer asked for when it stopped the run."""
        self._serve_checkpoint_requests()


def _make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, eps=config.optimizer_eps, fused=True
        )
    return torch.optim.RMSprop(
        model.parameters(), lr=config.learning_rate, alpha=0.99, eps=config.optimizer_eps
    )


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
