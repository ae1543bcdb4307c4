"""Policy worker: action requests -> one forward pass -> actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl import distributions
from sfrl.channels import Channels
from sfrl.config import Config
from sfrl.index_queue import Message, pack, unpack
from sfrl.model import ActorCritic
from sfrl.progress import Progress
from sfrl.timing import POLICY_STAGES, StageTimer
from sfrl.trajectory_buffer import Owner, TrajectoryBuffer
from sfrl.weights import WeightsReader


class PolicyWorker:
    """Answers the requests of whatever splits are ready, in one batch, with the newest weights.

    New weights are taken between batches, never within one. Recurrent state stays here, by split:
    a split has the same policy worker throughout.
    """

    def __init__(
        self,
        index: int,
        config: Config,
        model: ActorCritic,  # on the device and in the precision to act with
        buffer: TrajectoryBuffer,
        channels: Channels,
        weights: WeightsReader,
        progress: Progress,
    ) -> None:
        self.index = index
        self.model = model
        self.buffer = buffer
        self.inbox = channels.action_requests[index]
        self.replies = channels.replies
        self.weights = weights
        self.num_envs = config.envs_per_split
        self.slots_per_split = config.slots_per_split
        self.num_splits = config.num_splits
        self.max_requests = max(1, config.policy_batch_size // self.num_envs)
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(config.seed * 1_000_003 + index)
        self.obs = torch.from_numpy(buffer.obs)  # [S, T+1, N, *obs_shape]
        self.valid = torch.from_numpy(buffer.valid)  # [S, T+1, N]
        self.rnn_states = torch.zeros(  # [splits, N, H], before the row that is asked for next
            (config.splits, self.num_envs, model.rnn_size), device=self.device
        )
        component = config.num_workers + index
        self.timer = StageTimer(POLICY_STAGES, progress.stage_seconds(component, POLICY_STAGES))

    def step(self) -> bool:
        """Answer the requests that are there, at most `policy_batch_size` rows of them."""
        messages = [unpack(message) for message in self.inbox.get_many(self.max_requests)]
        if not messages:
            return False
        requests = [m for m in messages if self.buffer.is_current(m)]  # of workers that live
        if not requests:
            return True
        self.weights.refresh(self.model)
        self.timer.lap("refresh_weights")
        self._answer(requests)
        return True

    def rehearse(self) -> None:
        """The largest forward pass that may come: a GPU too small for it says so at start."""
        rows = self.obs[0, :1].expand(self.max_requests, *self.obs.shape[2:]).flatten(0, 1)
        rnn_state = None
        if self.model.rnn_size:
            rnn_state = torch.zeros((len(rows), self.model.rnn_size), device=self.device)
        self.model.step(rows.to(self.device), rnn_state)

    @torch.inference_mode()
    def _answer(self, requests: list[Message]) -> None:
        rows = [self.obs[slot, t] for slot, t, _ in requests]
        obs = rows[0] if len(rows) == 1 else torch.cat(rows)  # [B, *obs_shape], B = requests * N
        obs = obs.to(self.device)
        rnn_state = self._read_rnn_state(requests)  # [B, H], or None
        self.timer.lap("gather")
        output = self.model.step(obs, rnn_state)
        actions = distributions.sample(output.logits, self.generator)  # [B]
        log_probs = distributions.log_prob(output.logits, actions)
        self.timer.lap("forward")
        if output.rnn_state is not None:
            self._write_rnn_state(requests, output.rnn_state)
        self._reply(
            requests,
            actions.cpu().numpy(),
            log_probs.cpu().numpy(),
            output.values.cpu().numpy(),
        )
        self.timer.lap("scatter")

    def _reply(
        self,
        requests: list[Message],
        actions: NDArray[np.int64],  # [B]
        log_probs: NDArray[np.float32],  # [B]
        values: NDArray[np.float32],  # [B]
    ) -> None:
        buffer, n = self.buffer, self.num_envs
        for i, request in enumerate(requests):
            # The worker may have died since. A row written then is written once more before its
            # next reader: this worker serves all requests of a split, in order.
            if not buffer.is_current(request):
                continue
            slot, t, _ = request
            batch = slice(i * n, (i + 1) * n)
            buffer.check_owner(slot, Owner.POLICY_WORKER)
            buffer.actions[slot, t] = actions[batch]
            buffer.log_probs[slot, t] = log_probs[batch]
            buffer.values[slot, t] = values[batch]
            buffer.policy_version[slot, t] = self.weights.version
            # The row goes back with this put: everything in it is written.
            buffer.transfer(slot, Owner.POLICY_WORKER, Owner.ROLLOUT_WORKER)
            worker = slot // self.slots_per_split // self.num_splits
            self.replies[worker].put(pack(*request), self.index)

    def _read_rnn_state(self, requests: list[Message]) -> Tensor | None:
        if self.model.rnn_size == 0:
            return None
        states = [self.rnn_states[slot // self.slots_per_split] for slot, _, _ in requests]
        for (slot, t, _), state in zip(requests, states, strict=True):
            if t == 0:
                if self.buffer.starts[slot]:
                    state.zero_()
                self.buffer.rnn_state[slot] = state.cpu().numpy()
        return torch.cat(states)

    def _write_rnn_state(self, requests: list[Message], rnn_state: Tensor) -> None:
        for (slot, t, _), state in zip(requests, rnn_state.split(self.num_envs), strict=True):
            # A row that shows a final observation is followed by a new episode: state 0.
            is_valid = self.valid[slot, t].to(self.device)  # [N]
            self.rnn_states[slot // self.slots_per_split] = state * is_valid.unsqueeze(1)

    def state(self) -> dict[str, NDArray[Any]]:
        return {
            "generator": self.generator.get_state().numpy(),
            "rnn_states": self.rnn_states.cpu().numpy().copy(),
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        self.generator.set_state(torch.from_numpy(state["generator"]))
        self.rnn_states[:] = torch.from_numpy(state["rnn_states"])

    def wait(self, timeout_s: float) -> None:
        self.inbox.wait(timeout_s)
        self.timer.lap("wait_requests")

    def close(self) -> None:
        """Nothing to finish."""
