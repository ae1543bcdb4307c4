from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from sfrl.settings.fields import NOTE, USUAL, Count, Settings, at_most, between, nearest_multiple

_DEVICE = r"(cpu|cuda(:[0-9]{1,2})?)"


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(Settings):
    """Who does the work, and where."""

    tune: Annotated[Literal["off", "cached", "now"], USUAL] = "cached"
    """Fit workers, environments, splits and precision to this machine by a measurement of some
    seconds, whose result is kept; flags are respected. now: measure again. off: use the defaults.
    No effect with --serial and --resume."""
    tuned: Annotated[str, NOTE] = ""
    """What the tuner decided and why."""
    device: Annotated[str, USUAL] = "auto"
    """Where the learner runs: auto, cpu, cuda or cuda:N. auto: CUDA where there is one."""
    policy_devices: str = ""
    """Where policy workers run, in turn, e.g. cuda:0,cuda:1. Empty: where the learner does."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """auto: an inference or a minibatch is one CUDA graph, where it can be captured as one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder. auto: the faster one, measured at start (--serial: float32).
    Weights, optimizer, losses and V-trace are float32 in any case."""
    num_workers: Annotated[Count, USUAL] = 2
    """Rollout workers, one process each. They emulate: about one per core."""
    envs_per_worker: Annotated[Count, USUAL] = 16
    """Environments in one rollout worker, over all its splits."""
    num_splits: Count = 2
    """Groups of environments in a worker: one group steps while another waits for its actions."""
    threads_per_worker: Annotated[Count, at_most(1024)] = 1
    """Threads of a rollout worker in which its environments step at the same time: for those that
    wait, for a simulator elsewhere, a disk or the network. 1: none. Not for Atari."""
    num_policy_workers: Count = 1
    """Processes that run the policy. Each serves a fixed share of all splits."""
    policy_batch_size: Count = 512
    """Most observations in one forward pass of a policy worker."""
    torch_threads: Annotated[Count, at_most(1024)] = 1  # all are started
    """Threads of the learner on a CPU: each takes a part of a minibatch through the encoder, unless
    it is your own. Policy workers have one each, and there may be several."""
    queue: Literal["auto", "lock-free", "faster-fifo"] = "auto"
    """Index queues. auto: lock-free, or faster-fifo where the extension could not be built."""
    pin_workers: bool = False
    """Bind rollout worker i to core i (modulo the cores this process may use)."""
    worker_nice: Annotated[int, between(0, 19)] = 5
    """Niceness of rollout workers: above 0 the networks go first where cores are short. Not for
    systems whose workers have a network, such as impala and a3c."""
    debug_buffers: bool = False
    """Poison free slots and check ownership on every write to the trajectory buffer. Slow."""

    @property
    def envs_per_split(self) -> int:
        return self.envs_per_worker // self.num_splits

    @property
    def splits(self) -> int:
        """Splits of all workers; split i belongs to worker i // num_splits."""
        return self.num_workers * self.num_splits

    def problems(self) -> list[str]:
        return [*super().problems(), *self._split_problems(), *self._device_problems()]

    def _split_problems(self) -> list[str]:
        if min(self.num_workers, self.num_splits, self.envs_per_worker) < 1:
            return []  # has been reported, and divides by nothing
        problems = []
        envs_per_worker = nearest_multiple(self.envs_per_worker, self.num_splits)
        if self.envs_per_worker % self.num_splits:
            problems.append(
                f"envs_per_worker={self.envs_per_worker} must be a multiple of num_splits="
                f"{self.num_splits}, since all splits are equal; try "
                f"envs_per_worker={envs_per_worker}"
            )
        if self.num_policy_workers > self.splits:
            problems.append(
                f"num_policy_workers={self.num_policy_workers} must not exceed the {self.splits} "
                f"splits (num_workers * num_splits) that they share; try num_policy_workers="
                f"{self.splits}, or num_splits={-(-self.num_policy_workers // self.num_workers)}"
            )
        envs_per_split = envs_per_worker // self.num_splits
        if self.policy_batch_size < envs_per_split:
            problems.append(
                f"policy_batch_size={self.policy_batch_size} must be at least the {envs_per_split} "
                f"environments of a split (envs_per_worker / num_splits), which are served "
                f"together; try policy_batch_size={envs_per_split}"
            )
        return problems

    def _device_problems(self) -> list[str]:
        problems = []
        if not re.fullmatch(f"auto|{_DEVICE}", self.device):
            problems.append(f"device={self.device!r} must be auto, cpu, cuda or cuda:N")
        if not re.fullmatch(f"({_DEVICE}(,{_DEVICE})*)?", self.policy_devices):
            problems.append(
                f"policy_devices={self.policy_devices!r} must be devices like cpu, cuda or cuda:1, "
                f"separated by commas"
            )
        return problems
