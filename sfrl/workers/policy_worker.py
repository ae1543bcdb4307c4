"""Policy worker: action requests -> one forward pass -> actions."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl.algorithms.algorithm import Algorithm
from sfrl.envs.logs import own_logger
from sfrl.experience.trajectory_buffer import Owner, OwnershipError, TrajectoryBuffer
from sfrl.ipc.channels import Channels
from sfrl.ipc.index_queue import IndexQueue, Message, pack, unpack
from sfrl.ipc.progress import Progress
from sfrl.ipc.topology import Role
from sfrl.nets import cuda
from sfrl.nets.convolve import Environments
from sfrl.nets.model import Network
from sfrl.parameters.weights import WeightsSource
from sfrl.records.timing import POLICY_STAGES, StageTimer
from sfrl.settings.config import Config
from sfrl.systems import SYSTEMS
from sfrl.workers.inference import Batch, GpuBatch, HostBatch, Results, Rows, batch_sizes

log = own_logger(__name__)

_NOTHING = torch.empty(0)


class PolicyWorker:
    """Answers the requests of whatever splits are ready, in one batch, with the newest weights.

    New weights are taken between batches, never within one; in a system that freezes the policy
    for an unroll, only before the row that begins one. Recurrent state stays here, by split: a
    split has the same policy worker throughout.
    """

    def __init__(
        self,
        index: int,
        config: Config,
        algorithm: Algorithm,
        model: Network,  # on the device and in the precision to act with
        buffer: TrajectoryBuffer,
        channels: Channels,
        weights: WeightsSource,
        progress: Progress,
    ) -> None:
        role, slots = Role("policy", index), channels.topology.slots
        self.config = config
        self.progress = progress
        self.algorithm = algorithm
        self.model = model
        self.buffer = buffer
        self.inbox = channels.inbox(role)
        self.replies = channels.replies_by_slot(role)
        self.weights = weights
        self.num_envs = config.envs_per_split
        self.split_of = slots.split  # [S]
        served = slots.policy.count(index)  # splits
        self.max_requests = max(1, min(config.policy_batch_size // self.num_envs, served))
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device)
        # An actor that was started again draws other actions than its predecessor did.
        restarts = int(progress.restarts[index]) if config.has_actors else 0
        self.generator.manual_seed(config.seed * 1_000_003 + index + restarts * 104_729)
        self._is_frozen_in_unrolls = SYSTEMS[config.system].pull == "unroll"
        self.environments = Environments(served * self.num_envs)
        # A serial run is repeatable to the bit, wherever it was interrupted: it keeps nothing.
        self._keeps_images = not config.serial and model.keep_images(self.environments)
        # [splits, N]: their numbers there, of the splits served.
        before = np.cumsum(np.array(slots.policy) == index) - 1
        numbers = before[:, None] * self.num_envs + np.arange(self.num_envs)
        self._numbers: NDArray[np.int32] = numbers.astype(np.int32)
        # Leaf -> [S, T+1, N, *shape].
        self.obs = {name: torch.from_numpy(rows) for name, rows in buffer.obs.items()}
        self.valid = torch.from_numpy(buffer.valid)  # [S, T+1, N]
        # [splits, N, H], before the row that is asked for next. One more split, for `GpuBatch`.
        self._all_rnn_states = torch.zeros(
            (config.splits + 1, self.num_envs, buffer.spec.state_size), device=self.device
        )
        self.rnn_states = self._all_rnn_states[: config.splits]
        # [splits, N], of each environment, and of one more split; None: nobody explores so.
        self._exploration: Tensor | None = None
        if config.exploration(0) is not None:
            shape = self._all_rnn_states.shape[:2]
            self._exploration = torch.zeros(shape, device=self.device)
            is_gpu = self.device.type == "cuda"  # which copies from pinned memory without a wait
            self._host_exploration = torch.zeros(shape[0] - 1, shape[1], pin_memory=is_gpu)
        self._batches: deque[Batch] = deque(self._make_batches(config))
        self._stream = cuda.new_stream(self.device)  # last: it waits for what was made here
        # Of the batches launched, the oldest first: requests and the version that answers them.
        self._in_flight: deque[tuple[list[Message], int, Batch]] = deque()
        # While one computes the next is gathered; but --serial has nothing under way.
        self._max_in_flight = 0 if config.serial else len(self._batches) - 1
        self.timer = StageTimer(POLICY_STAGES, progress.stage_seconds(role))

    def _make_batches(self, config: Config) -> Sequence[Batch]:
        if self.device.type == "cpu":
            return [HostBatch(self._act)]
        for rows in self.buffer.obs.values():
            cuda.pin(rows)
        copies = torch.cuda.Stream(self.device)
        use_graphs = config.cuda_graphs == "auto"
        graphs = cuda.Graphs("inference", enabled=use_graphs, generators=[self.generator])
        return [
            GpuBatch(
                self._act,
                self.buffer.spec.acted,
                self.obs,
                self.max_requests,
                config.splits,
                self.device,
                copies,
                graphs,
            )
            for _ in range(2)
        ]

    def step(self) -> bool:
        """Answer the requests that are there, at most `policy_batch_size` rows of them.

        On a GPU these are answered while the next ones are gathered, or if there are none.
        """
        messages = [unpack(message) for message in self.inbox.get_many(self.max_requests)]
        requests = [m for m in messages if self.buffer.is_current(m)]  # of workers that live
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if requests:
                if not self._is_frozen_in_unrolls or any(t == 0 for _, t, _ in requests):
                    self.environments.renewals += self.weights.refresh(self.model)
                    self.timer.lap("refresh_weights")
                self._launch(requests)
            num_to_leave = self._max_in_flight if requests else 0
            has_answered = len(self._in_flight) > num_to_leave
            while len(self._in_flight) > num_to_leave:
                self._answer(*self._in_flight.popleft())
        return bool(messages) or has_answered

    def warm_up(self) -> None:
        """Every batch that may come, for nobody: until each is a graph, on a GPU.

        One that is too small for them says so at start then, and not in the middle of the run.
        """
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for batch, size in itertools.product(self._batches, batch_sizes(self.max_requests)):
                splits = torch.full((size,), len(self.rnn_states))
                valid = torch.ones((size, self.num_envs), dtype=torch.bool)
                for _ in range(cuda.Graphed.WARM_UP_CALLS + 1):
                    batch.load(self._rows([(0, 0)] * size), splits, valid)
                    batch.compute()
                    batch.result()

    def _launch(self, requests: list[Message]) -> None:
        batch = self._batches[0]
        self._batches.rotate(-1)
        rows = self._rows([(slot, t) for slot, t, _ in requests])
        if self._exploration is not None:
            now = self.config.exploration(self.progress.env_frames)
            assert now is not None, "as when it was made"
            self._host_exploration.copy_(torch.from_numpy(now))
            self._exploration[:-1].copy_(self._host_exploration, non_blocking=True)
        if self._keeps_images:
            splits = [self.split_of[slot] for slot, _, _ in requests]
            self.environments.rows = self._numbers[splits].ravel()
        batch.load(rows, *self._split_inputs(requests))
        self.timer.lap("gather")
        batch.compute()
        self._in_flight.append((requests, self.weights.version, batch))
        self.timer.lap("forward")

    def _rows(self, places: list[tuple[int, int]]) -> Rows:
        """Those of the slots and times, where they lie."""
        return {name: [rows[place] for place in places] for name, rows in self.obs.items()}

    def _answer(self, requests: list[Message], version: int, batch: Batch) -> None:
        acted = batch.result()
        self.timer.lap("forward")
        self._reply(requests, version, acted)
        self.timer.lap("scatter")

    def _act(self, obs: dict[str, Tensor], splits: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See `inference.Act`. Takes no time of the host's but to start its kernels."""
        is_recurrent = self.buffer.spec.state_size > 0
        states = self._all_rnn_states[splits].flatten(0, 1) if is_recurrent else None
        exploration = None if self._exploration is None else self._exploration[splits].flatten()
        fields, states = self.algorithm.act(self.model, obs, states, exploration, self.generator)
        if states is not None:
            # A row that shows a final observation is followed by a new episode: state 0, even if it
            # was not finite.
            states = states.unflatten(0, valid.shape)
            self._all_rnn_states[splits] = states.masked_fill(~valid.unsqueeze(2), 0)
        return fields

    def _reply(self, requests: list[Message], version: int, acted: Results) -> None:
        buffer, n = self.buffer, self.num_envs
        fields = [(buffer.acted[name], values) for name, values in acted.items()]
        for i, request in enumerate(requests):
            # The worker may have died since, and may die at any of these lines. A row written then
            # is written once more before its next reader: this worker serves all requests of a
            # split, in order; and no reader takes the message.
            if not buffer.is_current(request):
                continue
            slot, t, _ = request
            batch = slice(i * n, (i + 1) * n)
            for field, values in fields:
                field[slot, t] = values[batch]
            buffer.policy_version[slot, t] = version
            # The row goes back with this put: everything in it is written.
            if buffer.debug and buffer.is_current(request):
                try:
                    buffer.transfer(slot, Owner.POLICY_WORKER, Owner.ROLLOUT_WORKER)
                except OwnershipError:
                    if buffer.is_current(request):  # it was reclaimed just now otherwise
                        raise
            queue, producer = self.replies[slot]
            queue.put(pack(*request), producer)

    def _split_inputs(self, requests: list[Message]) -> tuple[Tensor, Tensor]:
        """splits [R] and valid [R, N] of the rows asked for; of no size where nobody needs them.

        With a memory the state before a slot's first row goes into the slot.
        """
        if self.buffer.spec.state_size == 0:
            if self._exploration is None:
                return _NOTHING, _NOTHING
            return torch.tensor([self.split_of[slot] for slot, _, _ in requests]), _NOTHING
        begun = [slot for slot, t, _ in requests if t == 0]
        if begun:
            for slot in begun:
                if self.buffer.starts[slot]:
                    self.rnn_states[self.split_of[slot]].zero_()
            states = self.rnn_states[[self.split_of[slot] for slot in begun]]
            self.buffer.rnn_state[begun] = states.cpu().numpy()
        splits = torch.tensor([self.split_of[slot] for slot, _, _ in requests])
        return splits, torch.stack([self.valid[slot, t] for slot, t, _ in requests])

    def state(self) -> dict[str, Any]:
        """Between two steps, as a checkpoint holds it.

        A policy that is frozen for an unroll is in no other place: the learner's is newer.
        """
        state: dict[str, Any] = {
            "generator": self.generator.get_state().numpy(),
            "rnn_states": self.rnn_states.cpu().numpy().copy(),
        }
        if self._is_frozen_in_unrolls:
            tensors = self.model.state_dict().items()
            state["model"] = {name: value.float().cpu().numpy() for name, value in tensors}
            state["version"] = self.weights.version
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        generator = torch.from_numpy(state["generator"])
        if len(generator) == len(self.generator.get_state()):
            self.generator.set_state(generator)
        else:
            log.info("the checkpoint is of another device: actions are drawn from another seed")
        self.rnn_states.copy_(torch.from_numpy(state["rnn_states"]))
        if "model" in state:
            for name, value in self.model.state_dict().items():
                value.copy_(torch.from_numpy(state["model"][name]))
            self.weights.version = state["version"]
        else:  # the newest ones; a checkpoint of before they were saved has none for an unroll
            self.weights.refresh(self.model)

    def wait(self, timeout_s: float, others: Sequence[IndexQueue] = ()) -> None:
        self.inbox.wait(timeout_s, others)
        self.waited()

    def waited(self) -> None:
        self.timer.lap("wait_requests")

    def close(self) -> None:
        """Nothing to finish."""
