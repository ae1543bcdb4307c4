"""A run's processes and what flows between them: what the page draws.

Who there is comes from the run's settings by `make_topology`, as in the run itself. Rates come from
its newest whole interval of records. What no record tells has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sfrl.ipc.topology import Role, Topology, make_topology
from sfrl.records.bottleneck import limiting_components
from sfrl.records.metrics import Record
from sfrl.records.timing import COMPONENT_STAGES, Kind
from sfrl.runs.reader import seconds_between
from sfrl.settings.config import Config

Place = Kind | Literal["buffer", "memory", "block"]
"""A node's name: all workers of a kind, or where rows or weights lie."""


@dataclass(frozen=True)
class Line:
    """In a node, under its title. {} in the text stands for the number."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Node:
    """
    Attributes:
        busy: the share of its time in which it works; None: it is no worker, or not known yet.
        limits: whether it limits the run.
    """

    name: Place
    title: str
    lines: Sequence[Line]
    busy: float | None = None
    limits: bool = False
    is_store: bool = False


@dataclass(frozen=True)
class Frame:
    """Nodes that one process has, or each of several equal ones."""

    title: str
    nodes: Sequence[Place]


@dataclass(frozen=True)
class Flow:
    """An arrow. per_s: in all processes together; None: no record tells."""

    sender: Place
    receiver: Place
    what: str
    per_s: float | None = None


@dataclass(frozen=True)
class Layout:
    """Nodes in a row, so that most flows go to a neighbor; those of a frame are side by side.

    Attributes:
        interval_s: of the records that the rates are of; None: there is none yet.
    """

    nodes: Sequence[Node]
    frames: Sequence[Frame]
    flows: Sequence[Flow]
    interval_s: float | None


def make_layout(config: Config, before: Record, record: Record) -> Layout:
    """
    Args:
        before: the record before `record`; either is {} where there is none.
    """
    topology = make_topology(config)
    rates = _rates(config, before, record)
    nodes = {
        n.name: n for n in (*_workers(config, topology, rates, record), *_stores(config, topology))
    }
    row = _row(config, topology)
    return Layout(
        [nodes[name] for name in row],
        _frames(config, topology, row),
        [*_flows_of_experience(config, rates), *_flows_of_weights(config, topology, rates)],
        seconds_between(before, record) or None,
    )


# --- what records tell ---


@dataclass(frozen=True)
class _Rates:
    """In a second. None: no record tells."""

    frames: float | None
    decisions: float | None
    updates: float | None
    trajectories: float | None  # that the learner has taken
    slots: float | None
    batches: float | None  # training batches


def _rates(config: Config, before: Record, record: Record) -> _Rates:
    seconds = seconds_between(before, record)

    def of(*counters: str) -> float | None:
        after = [record.get(name) for name in counters]
        if None in after or seconds <= 0:
            return None
        return sum((record[n] or 0) - (before.get(n) or 0) for n in counters) / seconds

    passes = of("learner_steps", "skipped_steps")
    batches = None
    if passes is not None and config.replay is None:  # of a memory's slots no fixed number is made
        batches = passes / (config.epochs * config.minibatches)
    slots = None if batches is None else batches * config.slots_per_batch
    return _Rates(
        frames=of("env_frames"),
        decisions=of("env_steps"),
        updates=of("learner_steps"),
        trajectories=None if slots is None else slots * config.envs_per_split,
        slots=slots,
        batches=batches,
    )


# --- nodes ---


def _workers(config: Config, topology: Topology, rates: _Rates, record: Record) -> list[Node]:
    """A node for each kind."""
    each = " each" if _in_each_node(topology, "rollout") > 1 else ""
    environments = _counted(config.envs_per_worker, "environment")
    lines: dict[Kind, list[Line]] = {
        "rollout": [Line(f"{environments}{each}"), Line("{} frames/s", rates.frames)],
        "policy": [],
        "learner": [
            Line("{} updates/s", rates.updates),
            Line(f"of {_counted(config.batch_size, 'decision')}"),
            Line("policy lag {} updates", record.get("policy_lag_mean")),
            Line("at most {}", record.get("policy_lag_max")),
        ],
    }
    limiting = limiting_components(record)
    return [
        Node(
            name=kind,
            title=_title(topology, kind),
            lines=[
                line for line in lines[kind] if line.number is not None or "{}" not in line.text
            ],
            busy=record.get(f"{kind}/working"),
            limits=kind in limiting,
        )
        for kind in topology.counts
    ]


def _title(topology: Topology, kind: Kind) -> str:
    name = kind if kind == "learner" else f"{kind} worker"
    number = _in_each_node(topology, kind)
    return _counted(number, name) if number > 1 else name


def _in_each_node(topology: Topology, kind: Kind) -> int:
    """Workers of a kind: all of them, or those in one of the processes that a frame shows."""
    members = topology.processes[topology.process_of(Role(kind, 0))]
    if len(members) == 1:
        return topology.counts[kind]
    return sum(role.kind == kind for role in members)


def _stores(config: Config, topology: Topology) -> list[Node]:
    size = config.replay.capacity if config.replay else 0
    rollout, learner = (topology.process_of(Role(kind, 0)) for kind in ("rollout", "learner"))
    is_of_process = rollout == learner  # then the frame has those of its own rollout workers
    workers = _in_each_node(topology, "rollout") if is_of_process else config.num_workers
    lines: dict[Place, tuple[str, list[str]]] = {
        "buffer": (
            "trajectory buffer",
            [
                "in shared memory",
                _counted(config.num_slots // config.num_workers * workers, "slot"),
                f"of {_counted(config.rollout_length, 'decision')}",
                f"x {_counted(config.envs_per_split, 'environment')}",
            ],
        ),
        "memory": ("memory", [f"of {_counted(size, 'decision')}", "drawn from at random"]),
        "block": ("parameter block", ["in shared memory", "the weights of all"]),
    }
    return [
        Node(name, title, [*map(Line, texts)], is_store=True)
        for name, (title, texts) in lines.items()
    ]


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


# --- where they stand ---


def _row(config: Config, topology: Topology) -> list[Place]:
    memory: list[Place] = ["memory"] if config.replay else []
    block: list[Place] = ["block"] if config.has_bundles else []
    rollout, policy, learner = (topology.process_of(Role(kind, 0)) for kind in COMPONENT_STAGES)
    if policy == learner != rollout:
        return ["rollout", "buffer", *memory, "learner", "policy"]
    return ["policy", "rollout", "buffer", *memory, "learner", *block]


def _frames(config: Config, topology: Topology, row: Sequence[Place]) -> list[Frame]:
    """Around what shares a process. Where all experience is of one process, its slots are too."""
    sorts = Counter(frozenset(role.kind for role in m) for m in topology.processes.values())
    frames = []
    for kinds, number in sorts.items():
        inner: set[Place] = {*kinds}
        if "learner" in kinds and config.replay:
            inner.add("memory")
        if {"rollout", "learner"} <= kinds:
            inner.add("buffer")
        if len(inner) > 1:
            title = "one process" if number == 1 else f"{number:,} processes, in each"
            title = "one process, the trainer's" if config.serial else title
            frames.append(Frame(title, [name for name in row if name in inner]))
    return frames


# --- flows ---


def _flows_of_experience(config: Config, rates: _Rates) -> list[Flow]:
    flows = [
        Flow("rollout", "policy", "observations", rates.decisions),
        Flow("policy", "rollout", "actions", rates.decisions),
        Flow("rollout", "buffer", "decisions", rates.decisions),
        Flow("buffer", "rollout", "free slots", rates.slots),
    ]
    if config.replay:
        return [
            *flows,
            Flow("buffer", "memory", "decisions", rates.decisions),
            Flow("memory", "buffer", "free slots"),
            Flow("memory", "learner", "minibatches", rates.updates),
        ]
    return [
        *flows,
        Flow("buffer", "learner", "trajectories", rates.trajectories),
        Flow("learner", "buffer", "free slots", rates.slots),
    ]


def _flows_of_weights(config: Config, topology: Topology, rates: _Rates) -> list[Flow]:
    """They are published after each training batch, unless the learner's process acts with them."""
    published = rates.batches if topology.acts_elsewhere else None
    flows = [Flow("learner", "policy", "weights", published)]
    if config.has_bundles:
        flows += [
            Flow("learner", "block", "gradients", rates.updates),
            Flow("block", "learner", "weights"),
        ]
    return flows
