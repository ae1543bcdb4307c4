"""What a message between two processes costs, on our kinds of queue and on others' as they are.

    sfrl bench queue

- round trip: a message there and its answer back, one at a time, so that each side has gone to
  sleep before its next message comes. This is how a rollout worker and a policy worker talk when
  little is going on. Median and 95th percentile of the wall time, and the CPU time of both
  processes together.
- stream: the messages are put one by one and taken one by one; the queue has room for all of them.
  CPU time of both processes per message, and messages per second.
- batches: the same, but they are taken in whatever batches they come in, as sfrl's workers do.

"faster-fifo" is the package's own queue with its `put` and `get`; "faster-fifo (sfrl)" is what runs
where the extension could not be built.

A warm-up run comes first; each figure is the median of the runs after it, and the spread is the
range of those runs.
"""

from __future__ import annotations

import multiprocessing
import queue as queue_module
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from sfrl.ipc.index_queue import IndexQueue, QueueKind, installed_kinds, make_index_queue
from sfrl.ipc.shared_memory import StopFlag
from sfrl.run.child import die_with_parent
from sfrl.run.signals import leave_stopping_to_the_trainer
from sfrl.run.spawning import spawn, wait_for_end

NUM_RUNS = 5
NUM_ROUND_TRIPS = 1_000
NUM_STREAMED: dict[QueueKind, int] = {"lock-free": 1 << 18, "faster-fifo": 1 << 15}
NUM_STREAMED_BY_OTHERS = 1 << 14
TIMEOUT_S = 20.0
SPAWN = multiprocessing.get_context("spawn")

Figures = TypeVar("Figures")


class Channel(Protocol):
    """What the benchmark uses of an `IndexQueue`."""

    def put(self, message: int) -> None: ...
    def get_many(self, max_messages: int) -> list[int]: ...
    def wait(self, timeout_s: float) -> bool: ...


class PlainQueue(Protocol):
    """multiprocessing.Queue and faster_fifo.Queue."""

    def put(self, obj: int) -> None: ...
    def get(self, *, timeout: float) -> int: ...


class OneByOne:
    """A plain queue as a `Channel`."""

    def __init__(self, plain: PlainQueue) -> None:
        self._queue = plain
        self._received: list[int] = []

    def put(self, message: int) -> None:
        self._queue.put(message)

    def get_many(self, max_messages: int) -> list[int]:
        messages, self._received = self._received, []
        return messages

    def wait(self, timeout_s: float) -> bool:
        if not self._received:
            try:
                self._received.append(self._queue.get(timeout=timeout_s))
            except queue_module.Empty:
                return False
        return True


class RoundTrip(NamedTuple):
    median_us: float
    p95_us: float
    cpu_us: float


class Stream(NamedTuple):
    cpu_us: float
    messages_per_s: float


def get_one(channel: Channel) -> int:
    if not channel.wait(TIMEOUT_S):
        raise TimeoutError(f"no message in {TIMEOUT_S} s")
    (message,) = channel.get_many(1)
    return message


def answer(requests: Channel, replies: Channel, cpu_times: Connection, num_runs: int) -> None:
    """The other side of `measure_round_trip`; reports its CPU seconds for each run."""
    for _ in range(num_runs):
        start_s = time.process_time()
        for _ in range(NUM_ROUND_TRIPS):
            replies.put(get_one(requests))
        cpu_times.send(time.process_time() - start_s)


def measure_round_trip(requests: Channel, replies: Channel, cpu_times: Connection) -> RoundTrip:
    wall_us = []
    start_cpu_s = time.process_time()
    for message in range(NUM_ROUND_TRIPS):
        start_ns = time.perf_counter_ns()
        requests.put(message)
        get_one(replies)
        wall_us.append((time.perf_counter_ns() - start_ns) / 1e3)
    cpu_s = time.process_time() - start_cpu_s + cpu_times.recv()
    return RoundTrip(
        median_us=statistics.median(wall_us),
        p95_us=float(np.percentile(wall_us, 95)),
        cpu_us=cpu_s / NUM_ROUND_TRIPS * 1e6,
    )


def send_stream(
    starts: Channel, stream: Channel, cpu_times: Connection, num_runs: int, num_messages: int
) -> None:
    """The other side of `measure_stream`; reports its CPU seconds for each run."""
    for _ in range(num_runs):
        get_one(starts)
        start_s = time.process_time()
        for message in range(num_messages):
            stream.put(message)
        get_one(starts)  # until all has arrived: multiprocessing.Queue sends in a thread
        cpu_times.send(time.process_time() - start_s)


def measure_stream(
    starts: Channel, stream: Channel, cpu_times: Connection, num_messages: int, at_once: int
) -> Stream:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    starts.put(0)
    num_received = 0
    while num_received < num_messages:
        if not stream.wait(TIMEOUT_S):
            raise TimeoutError(f"no message in {TIMEOUT_S} s")
        num_received += len(stream.get_many(at_once))
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    starts.put(0)
    cpu_s += cpu_times.recv()
    return Stream(cpu_us=cpu_s / num_messages * 1e6, messages_per_s=num_messages / wall_s)


def run(
    measure: Callable[[Connection], Figures], other_side: Callable[[Connection, int], None]
) -> list[Figures]:
    """NUM_RUNS of `measure` after a warm-up, against `other_side` in a process of its own."""
    cpu_times, child_end = SPAWN.Pipe(duplex=False)
    child = spawn(_run_body, partial(other_side, child_end, NUM_RUNS + 1))
    figures = [measure(cpu_times) for _ in range(NUM_RUNS + 1)]
    wait_for_end(child, TIMEOUT_S)
    child.kill()  # it has told all that it has measured
    return figures[1:]


def _run_body(body: Callable[[], None]) -> None:
    leave_stopping_to_the_trainer()
    die_with_parent()
    body()


def measure_kind(
    make_channel: Callable[[str], Channel], num_streamed: int
) -> dict[str, list[float]]:
    """All figures of one kind of queue: name -> one value per run."""
    requests, replies = make_channel("requests"), make_channel("replies")
    round_trips = run(
        partial(measure_round_trip, requests, replies), partial(answer, requests, replies)
    )
    streams, batches = (
        run(
            partial(measure_stream, requests, replies, num_messages=num_streamed, at_once=n),
            partial(send_stream, requests, replies, num_messages=num_streamed),
        )
        for n in (1, 1024)
    )
    return {
        "round_trip_us": [r.median_us for r in round_trips],
        "round_trip_p95_us": [r.p95_us for r in round_trips],
        "round_trip_cpu_us": [r.cpu_us for r in round_trips],
        "stream_cpu_us": [s.cpu_us for s in streams],
        "stream_messages_per_s": [s.messages_per_s for s in streams],
        "batches_cpu_us": [s.cpu_us for s in batches],
    }


def _alone(make: Callable[[int], Any], size: int, _name: str) -> Channel:
    return OneByOne(make(size))


def measure_all() -> dict[str, dict[str, float]]:
    """Prints the table, kind by kind; returns the medians by kind and figure."""
    stop = StopFlag()
    made: list[IndexQueue] = []

    def make_ours(kind: QueueKind, name: str) -> IndexQueue:
        made.append(make_index_queue(kind, name, 1, NUM_STREAMED[kind], stop))
        return made[-1]

    makers: dict[str, tuple[Callable[[str], Channel], int]] = {}
    for own in installed_kinds():
        name = own if own == "lock-free" else f"{own} (sfrl)"
        makers[name] = partial(make_ours, own), NUM_STREAMED[own]
        if own == "faster-fifo":
            import faster_fifo

            makers[own] = partial(_alone, faster_fifo.Queue, 1 << 22), NUM_STREAMED_BY_OTHERS
    makers["multiprocessing"] = partial(_alone, SPAWN.Queue, 0), NUM_STREAMED_BY_OTHERS

    results: dict[str, dict[str, float]] = {}
    print(f"{'queue':20} {'figure':22} {'median':>12} {'min':>12} {'max':>12}")
    try:
        for kind, (make_channel, num_streamed) in makers.items():
            figures = measure_kind(make_channel, num_streamed)
            for name, values in figures.items():
                low, mid, high = min(values), statistics.median(values), max(values)
                print(f"{kind:20} {name:22} {mid:12.4g} {low:12.4g} {high:12.4g}")
            results[kind] = {name: statistics.median(v) for name, v in figures.items()}
    finally:
        for index_queue in made:
            index_queue.unlink()
        stop.unlink()
    return results
