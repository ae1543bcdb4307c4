"""What a run needs of the machine, beside what it has: looked at before anything starts."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from envs import EnvSpec
from sfrl.config import Config
from sfrl.defaults import available_memory, available_processes
from sfrl.shared_memory import MIB, shm_shortage
from sfrl.trajectory_buffer import nbytes, slot_spec

# The least that a process has been seen to need: a run below it cannot work.
_ROLLOUT_BYTES, _NETWORK_BYTES = 25 * MIB, 150 * MIB
# Open files of the trainer, the process with the most: shared arrays, mailboxes, sentinels.
_FILES, _FILES_PER_PROCESS = 64, 8


class ShortageError(MemoryError):
    """The machine lacks something that the run needs; the text has both numbers and the remedy."""


def check(config: Config, spec: EnvSpec) -> None:
    """Raises ShortageError. The limit on open files is raised first as far as it may be."""
    problems = [
        *_memory_problems(config, spec),
        *_file_problems(config),
        *_process_problems(config),
    ]
    buffer = nbytes(config.num_slots, slot_spec(config, spec))
    if shortage := shm_shortage(buffer, "the trajectory buffer"):
        problems.append(shortage)
    if problems:
        raise ShortageError("\n".join(problems))


def _num_processes(config: Config) -> int:
    return config.num_workers + config.num_policy_workers + 1


def _memory_problems(config: Config, spec: EnvSpec) -> list[str]:
    buffer = nbytes(config.num_slots, slot_spec(config, spec))
    networks = config.num_policy_workers + 1
    needed = buffer + config.num_workers * _ROLLOUT_BYTES + networks * _NETWORK_BYTES
    available = available_memory()
    if needed <= available:
        return []
    return [
        f"{_num_processes(config)} processes and {buffer / MIB:,.0f} MiB of trajectories need at "
        f"least {needed / MIB:,.0f} MiB of memory, and {available / MIB:,.0f} MiB are free; lower "
        f"--num-workers={config.num_workers}, --envs-per-worker={config.envs_per_worker} or "
        f"--slots-per-split={config.slots_per_split}"
    ]


def _file_problems(config: Config) -> list[str]:
    needed = _FILES + _FILES_PER_PROCESS * _num_processes(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return []
    if hard == resource.RLIM_INFINITY or needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return []
    return [
        f"{_num_processes(config)} processes need {needed} open files in the trainer, and the "
        f"limit is {hard} (ulimit -Hn); lower --num-workers={config.num_workers}, or raise it"
    ]


def _process_problems(config: Config) -> list[str]:
    needed = _num_processes(config) + 1
    remedy = f"lower --num-workers={config.num_workers}, or raise the limit"
    problems = []
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and needed > limit:
        problems.append(
            f"the run needs {needed} processes, and the limit is {limit} (ulimit -u); {remedy}"
        )
    if (available := available_processes()) < needed:
        problems.append(
            f"the run needs {needed} processes, and its control group has room for {available:.0f} "
            f"(pids.max); {remedy}"
        )
    return problems


@contextmanager
def gpu_shortage_explained(config: Config) -> Iterator[None]:
    """Turns a GPU's running out of memory into a ShortageError that says what to do."""
    import torch

    try:
        yield
    except RuntimeError as error:  # torch's own kinds, of its allocator and of CUDA's libraries
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            sign in text for sign in ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")
        ):
            raise
        raise ShortageError(
            f"the GPU has too little memory for this run: {error}\n"
            f"Lower --batch-size={config.batch_size} or "
            f"--policy-batch-size={config.policy_batch_size}, choose a smaller model than "
            f"--model={config.model}, or end what else uses the GPU"
        ) from error
