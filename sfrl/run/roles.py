"""What the processes of a run share, and how each of its workers is made from that.

The only module that knows all workers. It imports them, and with them torch, inside the functions
that build them: the trainer and the rollout workers do without torch, which saves each of them 2 s
of start-up and 200 MB.
"""

from __future__ import annotations

import os
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
from sfrl.ipc.topology import Topology, make_topology
from sfrl.parameters import weights
from sfrl.parameters.model_size import model_size
from sfrl.parameters.weights import Weights
from sfrl.records import checkpoint
from sfrl.settings.config import Config

if TYPE_CHECKING:
    import torch

    from sfrl.algorithms import Algorithm
    from sfrl.nets.model import Network
    from sfrl.workers.actor import Actor
    from sfrl.workers.learner import Learner
    from sfrl.workers.policy_worker import PolicyWorker
    from sfrl.workers.rollout_worker import RolloutWorker

log = own_logger(__name__)


class Shared(NamedTuple):
    """What every process of a run gets. All of it lives in shared memory or is constant."""

    config: Config
    topology: Topology
    env: EnvSpec
    stop: StopFlag
    buffer: TrajectoryBuffer
    channels: Channels
    weights: Weights
    target_weights: Weights | None  # of an algorithm that needs a target
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
    return SharedBytes(
        trajectory_buffer.nbytes(config.num_slots, slot_spec(config, spec)),
        weights.nbytes(model_size(config, spec)) * (2 if config.target_period else 1),
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


def make_policy_worker(shared: Shared, index: int) -> PolicyWorker:
    """Builds the model once the learner has published weights. Raises Stopped."""
    import torch

    from sfrl.parameters.weights import WeightsReader
    from sfrl.workers.policy_worker import PolicyWorker

    config = shared.config
    if not config.serial:  # there the learner is in this process, too
        torch.set_num_threads(1)
    weights = WeightsReader(shared.weights)
    weights.wait_for_first(shared.stop)
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


def make_actor(shared: Shared, index: int, reports: Mailbox[Report]) -> Actor:
    """Waits for the learner's first weights before it makes environments. Raises Stopped."""
    from sfrl.workers.actor import Actor

    policy = make_policy_worker(shared, index)
    return Actor(make_rollout_worker(shared, index, reports), policy)


def make_learner(
    shared: Shared,
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
) -> Learner:
    """Builds the model, loads the checkpoint if there is one, publishes the weights."""
    import torch

    from sfrl.workers.learner import Learner

    config = shared.config
    torch.set_num_threads(config.torch_threads)
    torch.manual_seed(config.seed)
    algorithm, model = _make_model(shared, config.device)
    precision = _choose_precision(shared, model)
    model.learn_in(precision)
    # The policy workers follow: acting and learning must round alike.
    shared.weights.acts_in_bfloat16 = precision == torch.bfloat16
    log.info("networks run on %s in %s", next(model.parameters()).device, precision)
    learner = Learner(
        config,
        algorithm,
        model,
        shared.buffer,
        shared.channels,
        shared.weights,
        shared.target_weights,
        shared.progress,
        reports,
        requests,
    )
    if resume_path is not None:
        saved = checkpoint.load(resume_path)
        learner.load_state(saved)
        if config.replay is not None and saved.get("workers") is None:
            learner.load_memory()
    if learner.device.type != "cpu":
        learner.warm_up()
    learner.publish()
    return learner


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
