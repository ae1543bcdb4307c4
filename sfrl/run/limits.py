"""What a run needs of the machine, beside what it has: looked at before anything starts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import resource
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise

import psutil

from sfrl.envs import EnvSpec
from sfrl.experience.trajectory_buffer import row_bytes, slot_spec
from sfrl.ipc.shared_memory import MIB, ShortageError, shm_shortage
from sfrl.ipc.topology import make_topology
from sfrl.parameters.model_size import model_size
from sfrl.run.roles import shared_bytes
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.machine import available_memory, available_processes, machine

# The least that a process has been seen to need: a run below it cannot work.
_ROLLOUT_BYTES, _NETWORK_BYTES = 25 * MIB, 150 * MIB
_NETWORK_ADDRESSES, _NETWORK_DATA = 800 * MIB, 250 * MIB  # likewise, with torch's libraries
_LEARNER_COPIES = 4  # of the weights: themselves, their gradients, and two at most of the optimizer
_THREADS = 4  # of the trainer, for its output, and a process of multiprocessing's
_PLENTY = 10_000  # processes: of a limit above nobody counts how many there are
# Open files of the trainer, the process with the most: shared arrays, mailboxes, sentinels.
_FILES, _FILES_PER_PROCESS = 64, 8


def check_machine(config: Config) -> None:
    """What no arrangement of processes changes. Raises ShortageError."""
    problems = _address_problems()
    if shortage := shm_shortage(0, "the run"):
        problems.append(shortage)
    if problems and not config.serial:
        raise ShortageError("\n".join(problems))


def fitted(config: Config, fixed: Collection[str], spec: EnvSpec) -> tuple[Config, str | None]:
    """`config` with one slot for each split, where /dev/shm has no room for all of them.

    A worker then waits while the learner has its slot, but what is learned stays the same. A
    container of Docker's has 64 MiB by default, on which two workers of Pong's train so.

    Args:
        fixed: the settings that the user has chosen, which stay.

    Returns:
        The settings, and what to tell of the change.
    """
    shortage = _shm_shortage(config, spec)
    if shortage and "slots_per_split" not in fixed and config.slots_per_split > 1:
        with suppress(ConfigError):  # one slot is too few for a training batch
            smaller = dataclasses.replace(config, slots_per_split=1)
            if not _shm_shortage(smaller, spec):
                return smaller, f"going on with slots_per_split=1, which is slower: {shortage}"
    return config, None


def check(config: Config, spec: EnvSpec) -> None:
    """Raises ShortageError. The limit on open files is raised first as far as it may be."""
    problems = _memory_problems(config, spec)
    if not config.serial:
        problems += [*_file_problems(config), *_process_problems(config)]
    if shortage := _shm_shortage(config, spec):
        problems.append(shortage)
    if problems:
        raise ShortageError("\n".join(problems))


def _num_processes(config: Config) -> int:
    return len(make_topology(config).processes)


def _shm_shortage(config: Config, spec: EnvSpec) -> str | None:
    needed = shared_bytes(config, spec)
    ends = [0, *(math.ceil(total / MIB) for total in accumulate(needed))]  # the parts add up
    names = ("trajectories", "weights", "queues and reports")
    sizes = (end - start for start, end in pairwise(ends))
    parts = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    what = f"the run ({parts} MiB)"
    if needed.weights <= needed.trajectories + needed.others:
        return shm_shortage(sum(needed), what)
    rnn = f"lower --rnn-size={config.rnn_size}, " if config.rnn_size else ""
    remedy = f"{rnn}choose a smaller model than --model={config.model}"
    return shm_shortage(sum(needed), what, remedy)


def _memory_problems(config: Config, spec: EnvSpec) -> list[str]:
    needed_bytes = shared_bytes(config, spec)
    processes = make_topology(config).processes.values()
    networks = sum(any(role.kind != "rollout" for role in members) for members in processes)
    workers = len(processes) - networks
    model = 4 * model_size(config, spec)  # float32
    on_gpu = _finds_gpu() if config.device == "auto" else "cuda" in config.device
    num_targets = 1 if config.target_period else 0
    per_learner = _LEARNER_COPIES + num_targets
    copies = 0 if on_gpu else per_learner * config.num_learners + config.num_policies
    needed = sum(needed_bytes) + workers * _ROLLOUT_BYTES + networks * _NETWORK_BYTES
    needed += copies * model
    told = ""
    if config.replay is not None and not on_gpu:
        replay = config.replay.capacity * row_bytes(slot_spec(config, spec))
        needed += replay
        told = f", {replay / MIB:,.0f} MiB of a memory of {config.replay.capacity:,} rows"
    available = available_memory()
    if needed <= available:
        return []
    rnn = f", --rnn-size={config.rnn_size}" if config.rnn_size else ""
    return [
        f"{_num_processes(config)} processes, {needed_bytes.trajectories / MIB:,.0f} MiB of "
        f"trajectories{told} and a model of {model / MIB:,.0f} MiB need at least "
        f"{needed / MIB:,.0f} MiB of memory, and {available / MIB:,.0f} MiB are free; "
        f"lower {_replay_size(config)}--num-workers={config.num_workers}, "
        f"--envs-per-worker={config.envs_per_worker}{rnn} or "
        f"--slots-per-split={config.slots_per_split}"
    ]


def _finds_gpu() -> bool:
    """Whether torch, which is not asked, takes one where it may choose; False if unclear."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    of_cpu = importlib.metadata.version("torch").endswith("+cpu")
    return machine()["gpu"] is not None and not is_hidden and not of_cpu


def _replay_size(config: Config) -> str:
    """The flag, where there is a memory to make smaller."""
    return f"--replay-size={config.replay.capacity}, " if config.replay is not None else ""


def _address_problems() -> list[str]:
    limits = (
        ("-v", resource.RLIMIT_AS, _NETWORK_ADDRESSES),
        ("-d", resource.RLIMIT_DATA, _NETWORK_DATA),
    )
    return [
        f"a process with a network needs at least {needed / MIB:,.0f} MiB of addresses, and the "
        f"limit is {limit / MIB:,.0f} MiB (ulimit {flag}); raise it"
        for flag, number, needed in limits
        if resource.RLIM_INFINITY != (limit := resource.getrlimit(number)[0]) < needed
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
    needed = _num_processes(config) + _THREADS
    remedy = f"lower --num-workers={config.num_workers}, or raise the limit"
    problems = []
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.getuid() != 0 and limit != resource.RLIM_INFINITY:  # root has no limit
        used = _num_threads() if limit < _PLENTY else 0
        if used + needed > limit:
            problems.append(
                f"the run needs {needed} processes and threads, this user has {used} already, and "
                f"the limit is {limit} (ulimit -u); {remedy}"
            )
    if (available := available_processes()) < needed:
        problems.append(
            f"the run needs {needed} processes and threads, and its control group has room for "
            f"{available:.0f} (pids.max); {remedy}"
        )
    return problems


def _num_threads() -> int:
    """Of all processes of this user: what the kernel counts."""
    uid, number = os.getuid(), 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            number += process.num_threads() if process.uids().real == uid else 0
    return number


@contextmanager
def memory_shortage_explained(config: Config) -> Iterator[None]:
    """Turns torch's running out of memory into a ShortageError that says what to do."""
    import torch

    try:
        yield
    except RuntimeError as error:  # torch's own kinds, of its allocator and of CUDA's libraries
        text = str(error)
        if "DefaultCPUAllocator: can't allocate memory" in text:
            raise ShortageError(
                f"there is too little memory for this run: {text.partition('] . ')[2] or text}; "
                f"lower {_replay_size(config)}--batch-size={config.batch_size}, choose a smaller "
                f"model than --model={config.model} with --rnn-size={config.rnn_size}, or raise "
                f"the limit (ulimit -v)"
            ) from error
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            sign in text for sign in ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")
        ):
            raise
        raise ShortageError(
            f"the GPU has too little memory for this run: {error}\n"
            f"Lower {_replay_size(config)}--batch-size={config.batch_size} or "
            f"--policy-batch-size={config.policy_batch_size}, choose a smaller model than "
            f"--model={config.model}, or end what else uses the GPU"
        ) from error
