"""What the processes of a run share, and how each of its workers is made from that.

The only module that knows all workers. It imports them, and with them torch, inside the functions
that build them: the trainer and the rollout workers do without torch, which saves each of them 2 s
of start-up and 200 MB.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sfrl.envs import EnvSpec
from sfrl.envs.logs import own_logger
from sfrl.experience import trajectory_buffer
from sfrl.experience.trajectory_buffer import TrajectoryBuffer, slot_spec
from sfrl.ipc import channels, progress
from sfrl.ipc.channels import Channels, make_channels
from sfrl.ipc.index_queue import resolve_queue_kind
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, Report
from sfrl.ipc.progress import Progress
from sfrl.ipc.shared_memory import StopFlag, segment_bytes
from sfrl.ipc.topology import Role, Topology, make_topology
from sfrl.parameters import block, weights
from sfrl.parameters.block import ParameterBlock
from sfrl.parameters.model_size import model_size
from sfrl.parameters.weights import Weights
from sfrl.records import checkpoint
from sfrl.settings.config import Config

if TYPE_CHECKING:
    import torch

    from sfrl.algorithms import Algorithm
    from sfrl.nets.model import Network
    from sfrl.workers.learner import Learner
    from sfrl.workers.policy_worker import PolicyWorker
    from sfrl.workers.rollout_worker import RolloutWorker
    from sfrl.workers.worker import Worker

log = own_logger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Shared(NamedTuple):
    """What every process of a run gets. All of it lives in shared memory or is constant."""

    config: Config
    topology: Topology
    env: EnvSpec
    stop: StopFlag
    buffer: TrajectoryBuffer
    channels: Channels
    weights: Weights  # published if somebody acts with them in another process than the learner's
    target_weights: Weights | None  # of an algorithm that needs a target
    block: ParameterBlock | None  # where several learners have their weights together
    progress: Progress


def make_shared(config: Config, spec: EnvSpec) -> Shared:
    """The shared objects of a new run in an environment that looks like `spec`.

    Raises MemoryError if /dev/shm is too small for them.
    """
    stop, topology = StopFlag(), make_topology(config)
    return Shared(
        config,
        topology,
        spec,
        stop,
        TrajectoryBuffer(config.num_slots, slot_spec(config, spec), debug=config.debug_buffers),
        make_channels(topology, resolve_queue_kind(config.queue), stop),
        Weights(),
        Weights("target-weights") if config.target_period else None,
        ParameterBlock() if config.has_bundles else None,
        Progress(topology, spec.frameskip),
    )


class SharedBytes(NamedTuple):
    """Shared memory that a run takes, in bytes."""

    trajectories: int
    weights: int
    others: int


def shared_bytes(config: Config, spec: EnvSpec) -> SharedBytes:
    """Of all that `make_shared`, the crew and the learner allocate."""
    topology = make_topology(config)
    num_mailboxes = len(topology.processes) + 1  # requests go the other way
    size = model_size(config, spec)
    num_weights = int(topology.acts_elsewhere) + (config.target_period > 0)
    return SharedBytes(
        trajectory_buffer.nbytes(config.num_slots, slot_spec(config, spec)),
        weights.nbytes(size) * num_weights + (block.nbytes(size) if config.has_bundles else 0),
        segment_bytes(StopFlag.FIELD)
        + channels.nbytes(topology, resolve_queue_kind(config.queue))
        + progress.nbytes(topology)
        + num_mailboxes * segment_bytes(Mailbox.FIELD),
    )


def make_rollout_worker(shared: Shared, index: int, reports: Mailbox[Report]) -> RolloutWorker:
    from sfrl.workers.rollout_worker import RolloutWorker

    return RolloutWorker(
        index, shared.config, shared.buffer, shared.channels, shared.progress, reports
    )


def make_policy_worker(shared: Shared, index: int, learner: Learner | None = None) -> PolicyWorker:
    """Builds the model once there are weights: those of `learner`, if it is in this process.

    Raises:
        Stopped: the run stops before another process's learner has published any.
    """
    import torch

    from sfrl.parameters.weights import OlderWeights, WeightsReader, WeightsSource
    from sfrl.workers.learner import OwnWeights
    from sfrl.workers.policy_worker import PolicyWorker

    config = shared.config
    weights: WeightsSource
    if learner is not None:
        weights = OwnWeights(learner)
    else:
        assert shared.topology.acts_elsewhere, "nothing is published: this would wait for ever"
        torch.set_num_threads(1)
        weights = WeightsReader(shared.weights)
        weights.wait_for_first(shared.stop)
    if config.forced_lag:
        weights = OlderWeights(weights, config.forced_lag)
    # A GPU that many actors share would have a small batch of each in turn.
    usual = "cpu" if config.has_actors else config.device
    names = (config.policy_devices or usual).split(",")
    algorithm, model = _make_model(shared, names[index % len(names)])
    precision = torch.bfloat16 if shared.weights.acts_in_bfloat16 else torch.float32
    worker = PolicyWorker(
        index,
        config,
        algorithm,
        model.inference_copy(precision),
        shared.buffer,
        shared.channels,
        weights,
        shared.progress,
    )
    if worker.device.type != "cpu":
        worker.warm_up()
    return worker


def make_members(
    shared: Shared,
    members: Sequence[Role],
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
) -> list[Worker]:
    """All workers of one process, in that order.

    The learner is made first, with the weights that the others wait for, and environments last.
    Raises Stopped.
    """
    learner: Learner | None
    made: dict[Role, Worker] = {}
    learners: dict[int, Learner] = {}
    for role in (r for r in members if r.kind == "learner"):
        learner = make_learner(shared, reports, requests, resume_path, role.index)
        made[role] = learners[role.index] = learner
    for role in (r for r in members if r.kind == "policy"):
        learner = learners.get(shared.topology.learner_of(role).index)
        made[role] = make_policy_worker(shared, role.index, learner)
    for role in (r for r in members if r.kind == "rollout"):
        made[role] = make_rollout_worker(shared, role.index, reports)
    return [made[role] for role in members]


def make_learner(
    shared: Shared,
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
    index: int = 0,
) -> Learner:
    """Builds the model, loads the checkpoint if there is one, publishes the weights.

    Of several learners the first one does that, unless it takes the place of one that has died; the
    others wait for it. Raises Stopped.
    """
    import torch

    from sfrl.parameters.central import CentralParameters
    from sfrl.parameters.parameters import Parameters
    from sfrl.parameters.shared import SharedParameters
    from sfrl.workers.learner import Learner

    config, block = shared.config, shared.block
    torch.set_num_threads(1)  # for each of the learner's threads: see sfrl/nets/pieces.py
    torch.manual_seed(config.seed)
    keep_freed_memory()
    algorithm, model = _make_model(shared, config.device)
    precision = _choose_precision(shared, model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    model.learn_in(precision, config.torch_threads if on_cpu else 1)
    # The policy workers follow: acting and learning must round alike.
    shared.weights.acts_in_bfloat16 = precision == torch.bfloat16
    has_weights = block is not None and block.is_ready
    if index == 0 and not has_weights:  # of several learners once
        log.info("networks run on %s in %s", next(model.parameters()).device, precision)
    acts_elsewhere = shared.topology.acts_elsewhere
    parameters: Parameters
    if block is None:
        published = shared.weights if acts_elsewhere else None
        parameters = CentralParameters(config, model, published, shared.target_weights)
    else:
        parameters = SharedParameters(
            config, model, block, index, shared.stop, shared.target_weights
        )
    learner = Learner(
        config,
        algorithm,
        model,
        shared.buffer,
        shared.channels,
        parameters,
        shared.progress,
        reports,
        requests,
        index=index,
        saves_alone=None if block is None else block.saving_lock,
        acts_in_process=not acts_elsewhere,
    )
    has_memory = False
    if resume_path is not None and index == 0 and not has_weights:
        saved = checkpoint.load(resume_path)
        learner.load_state(saved)
        has_memory = config.replay is not None
    if learner.device.type != "cpu":
        learner.warm_up()
    learner.publish()
    if has_memory:  # gigabytes, for which those who wait for the weights need not wait
        learner.load_memory()
    return learner


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, for its next tensors.

    Each minibatch has the same ones, of megabytes. Given back, they come from fresh pages each
    time, which the kernel clears (docs/experiments.md, "Keeping the allocator's memory").
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # both are the most that it takes
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _make_model(shared: Shared, device: str) -> tuple[Algorithm, Network]:
    """The run's algorithm and model, in float32, on `device`, which this process then uses."""
    import torch

    from sfrl.algorithms import make_algorithm

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)
    algorithm = make_algorithm(shared.config, shared.env)
    return algorithm, algorithm.make_model().to(device)


def _choose_precision(shared: Shared, model: Network) -> torch.dtype:
    """That of the encoder: as configured, or the faster one."""
    import torch

    from sfrl.nets.encoders import example
    from sfrl.nets.model import pick_precision

    config, spec = shared.config, shared.env
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    # A measurement is not repeatable, and --serial must be. Vectors would be rounded themselves;
    # pixels are not.
    if config.serial or not spec.has_pixels:
        return torch.float32
    device = next(model.parameters()).device
    obs = {leaf.name: example(leaf, config.envs_per_split).to(device) for leaf in spec.leaves}
    return pick_precision(model, obs)


def pin_and_nice(config: Config, index: int) -> None:
    """Rollout worker `index`'s niceness and, with `pin_workers`, its core.

    One with a network in its process is not nice: others wait for networks.
    """
    if config.worker_nice and not config.has_actors:
        os.nice(config.worker_nice)
    if config.pin_workers:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
