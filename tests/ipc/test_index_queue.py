"""Index queues: both kinds, within a process and between processes."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from sfrl.ipc.index_queue import (
    IndexQueue,
    LockFreeQueue,
    QueueFullError,
    QueueKind,
    make_index_queue,
    pack,
    resolve_queue_kind,
    unpack,
)
from sfrl.ipc.shared_memory import SHM_DIR, StopFlag, Stopped

ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")
MAX_MESSAGES = 1 << 16

MakeQueue = Callable[..., IndexQueue]


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    flag = StopFlag()
    yield flag
    flag.unlink()


@pytest.fixture
def extension() -> None:
    """Skips where the extension cannot be there; where a compiler is, its absence is an error."""
    if importlib.util.find_spec("sfrl.ipc._index_queue") is None and shutil.which("c++") is None:
        pytest.skip("no compiler, so no extension sfrl.ipc._index_queue")
    importlib.import_module("sfrl.ipc._index_queue")


@pytest.fixture(params=["lock-free", "faster-fifo"])
def kind(request: pytest.FixtureRequest) -> QueueKind:
    kind: QueueKind = request.param
    if kind == "lock-free":
        request.getfixturevalue("extension")
    return kind


@pytest.fixture
def make_queue(stop: StopFlag) -> Iterator[MakeQueue]:
    queues: list[IndexQueue] = []

    def make(
        kind: QueueKind,
        num_producers: int = 1,
        capacity: int = 8,
        spin_us: float = 0.0,
        bell: IndexQueue | None = None,
    ) -> IndexQueue:
        queues.append(make_index_queue(kind, "test", num_producers, capacity, stop, spin_us, bell))
        return queues[-1]

    yield make
    for queue in queues:
        queue.unlink()


@pytest.fixture
def make_lock_free(extension: None, make_queue: MakeQueue) -> MakeQueue:
    return partial(make_queue, "lock-free")


def get_all(queue: IndexQueue) -> list[int]:
    messages: list[int] = []
    while new := queue.get_many(MAX_MESSAGES):
        messages += new
    return messages


@pytest.mark.parametrize(("slot", "t"), [(0, 0), (3, 7), (2**20 - 1, 0), (0, 2**20 - 1)])
def test_unpack_undoes_pack(slot: int, t: int) -> None:
    for generation in (0, 1, 2**24 - 1, 2**24 + 5):
        assert unpack(pack(slot, t, generation)) == (slot, t, generation % 2**24)


# --- one process ---


def test_messages_come_out_in_order_and_whole(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind)
    messages = [0, 1, pack(5, 9, 3), 2**64 - 1]
    for message in messages:
        queue.put(message)
    assert queue.get_many(3) == messages[:3]
    assert queue.get_many(3) == messages[3:]
    assert queue.get_many(3) == []


def test_order_holds_for_each_producer(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind, num_producers=3)
    for i in range(8):
        for producer in range(3):
            queue.put(pack(producer, i, 0), producer)
    received = [unpack(message)[:2] for message in get_all(queue)]
    for producer in range(3):
        assert [i for p, i in received if p == producer] == list(range(8))


def test_queue_wraps_around(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind, capacity=4)
    for first in range(0, 300, 3):  # 3 and 4 have no common factor: every offset is met
        for message in range(first, first + 3):
            queue.put(message)
        assert queue.get_many(8) == [first, first + 1, first + 2]


def test_full_queue_raises_and_keeps_what_it_has(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind, capacity=4)
    for message in range(4):
        queue.put(message)
    with pytest.raises(QueueFullError, match=r"'test'.* 4 messages"):
        queue.put(4)
    assert get_all(queue) == [0, 1, 2, 3]
    queue.put(5)
    assert get_all(queue) == [5]


def test_capacity_is_enough_if_no_power_of_two(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind, num_producers=2, capacity=5)
    for i in range(5):
        queue.put(i, 0)
        queue.put(i, 1)
    assert sorted(get_all(queue)) == sorted([*range(5), *range(5)])


def test_put_many_is_all_or_nothing(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind, capacity=4)
    queue.put_many(np.arange(3, dtype=np.uint64))
    with pytest.raises(QueueFullError):
        queue.put_many(np.arange(10, 12, dtype=np.uint64))
    assert get_all(queue) == [0, 1, 2]


def test_unknown_producer_is_refused(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind, num_producers=2)
    with pytest.raises(IndexError, match="producer 2 of a queue with 2 producers"):
        queue.put(0, producer=2)


def test_busy_producer_does_not_starve_the_others(make_lock_free: MakeQueue) -> None:
    queue = make_lock_free(num_producers=3)
    for i in range(8):
        for producer in range(3):
            queue.put(pack(producer, i, 0), producer)
    served = [unpack(message)[0] for _ in range(6) for message in queue.get_many(2)]
    assert served == [0, 0, 1, 1, 2, 2] * 2


def test_what_a_producer_put_last_is_known_taken_or_not(make_lock_free: MakeQueue) -> None:
    queue = make_lock_free(num_producers=2, capacity=4)
    assert queue.recent(0) == []
    queue.put(9, 1)
    for message in range(3):
        queue.put(message, 0)
    assert queue.recent(0) == [0, 1, 2]
    assert queue.get_many(3) == [0, 1, 2]
    queue.put_many(np.array([3, 4], np.uint64), 0)
    assert queue.recent(0) == [1, 2, 3, 4]
    assert queue.recent(1) == [9]


def test_unlink_leaves_nothing_in_shared_memory(kind: QueueKind, stop: StopFlag) -> None:
    own = f"sfrl-{os.getpid()}-*/*"
    before = set(SHM_DIR.glob(own))
    queue = make_index_queue(kind, "test", num_producers=2, capacity=8, stop=stop)
    assert set(SHM_DIR.glob(own)) > before or kind == "faster-fifo"  # it has memory of its own
    queue.unlink()
    assert set(SHM_DIR.glob(own)) <= before


# --- waiting ---


def test_wait_times_out(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind)
    for timeout_s in (0.0, 0.12):
        start_s = time.monotonic()
        assert not queue.wait(timeout_s)
        assert timeout_s <= time.monotonic() - start_s < timeout_s + 0.5


def test_wait_returns_at_once_beside_a_message(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind)
    queue.put(5)
    for _ in range(2):  # waiting takes nothing out
        assert queue.wait(0.0)
    assert queue.get_many(8) == [5]


def test_spinning_wait_ends_like_a_sleeping_one(make_lock_free: MakeQueue) -> None:
    queue = make_lock_free(spin_us=1e6)
    start_s = time.monotonic()
    assert not queue.wait(0.01)
    assert time.monotonic() - start_s < 0.5
    queue.put(5)
    assert queue.wait(0.0)


def test_put_wakes_the_sleeping_consumer(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind)
    put_s: list[float] = []

    def put_later() -> None:  # runs only because `wait` gives up the GIL
        time.sleep(0.2)
        put_s.append(time.monotonic())
        queue.put(5)

    producer = threading.Thread(target=put_later)
    producer.start()
    assert queue.wait(20.0)
    woken_s = time.monotonic()
    producer.join()
    assert woken_s - put_s[0] < 0.1


@pytest.mark.parametrize("used", [0, 1, 2])
def test_a_consumer_of_several_queues_wakes_for_each_and_takes_only_what_it_asks_for(
    kind: QueueKind, make_queue: MakeQueue, used: int
) -> None:
    first = make_queue(kind)
    queues = [first, make_queue(kind, bell=first), make_queue(kind, bell=first)]
    assert not first.wait(0.05, queues[1:])
    put_s: list[float] = []

    def put_later() -> None:
        time.sleep(0.2)
        put_s.append(time.monotonic())
        queues[used].put(5)

    producer = threading.Thread(target=put_later)
    producer.start()
    assert first.wait(20.0, queues[1:])
    woken_s = time.monotonic()
    producer.join()
    # faster-fifo knows no bell: it naps on the first queue, and looks at the others in between.
    assert woken_s - put_s[0] < (0.04 if kind == "lock-free" else 0.2)
    assert first.wait(0.0, queues[1:]), "waiting takes nothing out"
    assert [queue.get_many(8) for queue in queues] == [[5] if i == used else [] for i in range(3)]
    assert not first.wait(0.0, queues[1:])


def put_one(queue: IndexQueue) -> None:
    queue.put(7)


def test_another_process_rings_the_bell_of_another_queue(make_lock_free: MakeQueue) -> None:
    first = make_lock_free()
    second = make_lock_free(bell=first)
    producer = SPAWN.Process(target=put_one, args=(second,))
    producer.start()
    assert first.wait(20.0, [second])
    assert second.get_many(8) == [7]
    producer.join()
    words = first._memory.array[:1].view(np.uint32)
    assert words[0] == 1, "it was rung once, and slept on"


def test_message_is_found_if_its_producer_died_before_ringing(make_lock_free: MakeQueue) -> None:
    queue = make_lock_free(capacity=8)
    assert isinstance(queue, LockFreeQueue)
    words = queue._memory.array  # 64 bytes of doorbell, 64 of tail, 64 of head, the cells

    def put_without_ringing() -> None:
        words[24] = 5
        words[8] = 1

    threading.Timer(0.2, put_without_ringing).start()
    start_s = time.monotonic()
    assert queue.wait(20.0)
    assert time.monotonic() - start_s < 0.4
    assert queue.get_many(8) == [5]


def test_sleeping_consumer_uses_no_cpu(kind: QueueKind, make_queue: MakeQueue) -> None:
    queue = make_queue(kind)
    start_s = time.process_time()
    assert not queue.wait(1.0)
    assert time.process_time() - start_s < 0.02


def test_signal_handler_runs_while_the_consumer_sleeps(
    kind: QueueKind, make_queue: MakeQueue
) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    queue = make_queue(kind)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        start_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            queue.wait(20.0)
        assert time.monotonic() - start_s < 0.5
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_stopped_comes_before_messages(
    kind: QueueKind, make_queue: MakeQueue, stop: StopFlag
) -> None:
    queue = make_queue(kind)
    queue.put(5)
    stop.set()
    with pytest.raises(Stopped):
        queue.wait(20.0)
    assert queue.get_many(8) == [5]  # what is there can still be drained


# --- between processes ---


def report_stop(queue: IndexQueue, reports: Connection) -> None:
    reports.send("waiting")
    try:
        queue.wait(20.0)
    except Stopped:
        reports.send(time.monotonic())  # the same clock in all processes


@pytest.mark.parametrize("use_wake", [True, False], ids=["woken", "unwoken"])
def test_stop_ends_the_wait_of_another_process_within_100_ms(
    kind: QueueKind, make_queue: MakeQueue, stop: StopFlag, use_wake: bool
) -> None:
    queue = make_queue(kind)
    reports, child_end = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=report_stop, args=(queue, child_end))
    child.start()
    assert reports.recv() == "waiting"
    time.sleep(0.2)  # lets it fall asleep; the test holds either way
    set_s = time.monotonic()
    stop.set()
    if use_wake:
        queue.wake()
    assert reports.poll(10.0)
    assert reports.recv() - set_s < 0.1
    child.join()
    assert child.exitcode == 0


def echo(requests: IndexQueue, replies: IndexQueue) -> None:
    while requests.wait(20.0):
        for message in requests.get_many(MAX_MESSAGES):
            if message == 0:
                return
            replies.put(message + 1)


def test_queue_and_doorbell_cross_spawn(kind: QueueKind, make_queue: MakeQueue) -> None:
    requests, replies = make_queue(kind), make_queue(kind)
    requests.put(1)  # before the child exists
    child = SPAWN.Process(target=echo, args=(requests, replies))
    child.start()
    assert replies.wait(20.0)
    start_s = time.monotonic()
    for message in range(1, 1000):
        assert replies.wait(20.0)
        assert replies.get_many(8) == [message + 1]
        requests.put(message + 1)
    # Milliseconds, unless the puts ring no bell and each message waits for the end of a nap.
    assert time.monotonic() - start_s < 10.0
    requests.put(0)
    child.join()
    assert child.exitcode == 0


def produce(queue: IndexQueue, first: int, num_messages: int, chunk: int) -> None:
    for start in range(first, first + num_messages, chunk):
        messages = np.arange(start, min(start + chunk, first + num_messages), dtype=np.uint64)
        while True:
            try:
                queue.put_many(messages)
                break
            except QueueFullError:
                os.sched_yield()  # the consumer may need this core


@pytest.mark.parametrize("chunk", [1, 4096])
def test_millions_of_messages_arrive_once_each_and_in_order(
    kind: QueueKind, make_queue: MakeQueue, chunk: int
) -> None:
    num_messages = {"lock-free": 10_000_000, "faster-fifo": 500_000}[kind]
    if chunk == 1:
        num_messages //= 20
    queue = make_queue(kind, capacity=MAX_MESSAGES)
    child = SPAWN.Process(target=produce, args=(queue, 0, num_messages, chunk))
    child.start()
    num_received = 0
    while num_received < num_messages:
        assert queue.wait(20.0), f"nothing came after {num_received} messages"
        messages = np.array(queue.get_many(MAX_MESSAGES), np.uint64)
        expected = np.arange(num_received, num_received + len(messages), dtype=np.uint64)
        np.testing.assert_array_equal(messages, expected)
        num_received += len(messages)
    child.join()
    assert child.exitcode == 0
    assert not queue.wait(0.0)


def test_producer_killed_mid_stream_leaves_a_prefix(make_lock_free: MakeQueue) -> None:
    queue = make_lock_free(capacity=1024)
    num_received = 0
    for run in range(5):  # each takes up the ring where the killed one left it
        child = SPAWN.Process(target=produce, args=(queue, num_received, 1 << 40, 1 + run % 2))
        child.start()
        messages: list[int] = []
        assert queue.wait(20.0)
        while len(messages) < 20_000 + 1000 * run:
            assert queue.wait(20.0)
            messages += queue.get_many(256)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while queue.wait(0.0):
            messages += queue.get_many(256)
        assert messages == list(range(num_received, num_received + len(messages)))
        num_received += len(messages)


# --- which kind ---


def run_without_extension(code: str) -> subprocess.CompletedProcess[str]:
    block = "import sys; sys.modules['sfrl.ipc._index_queue'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True, check=True
    )


def test_auto_is_lock_free_and_silent_with_the_extension(
    extension: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve_queue_kind("auto") == resolve_queue_kind("lock-free") == "lock-free"
        assert resolve_queue_kind("faster-fifo") == "faster-fifo"
    assert not caplog.records


def test_auto_falls_back_to_faster_fifo() -> None:
    done = run_without_extension(
        "from sfrl.ipc.index_queue import make_index_queue, resolve_queue_kind\n"
        "from sfrl.ipc.shared_memory import StopFlag\n"
        "stop = StopFlag()\n"
        "queue = make_index_queue(resolve_queue_kind('auto'), 'test', 1, 8, stop)\n"
        "stop.unlink()\n"
        "queue.put(5)\n"
        "print(type(queue).__name__, queue.get_many(8))\n"
    )
    assert done.stdout.split() == ["FasterFifoQueue", "[5]"]
    assert done.stderr == ""  # the run's log tells of it, once: `slower_than_need_be`


def test_where_no_queue_is_installed_the_remedy_is_named() -> None:
    done = run_without_extension(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'faster_fifo' else found(name)\n"
        "from sfrl.ipc.index_queue import resolve_queue_kind\n"
        "for kind in ('auto', 'faster-fifo'):\n"
        "    try:\n"
        "        resolve_queue_kind(kind)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    of_auto, of_fifo = done.stdout.splitlines()
    assert of_auto.startswith("there is no queue: ")
    assert "install a C++17 compiler" in of_auto
    assert of_fifo.startswith("queue=faster-fifo needs the package faster-fifo")


def test_lock_free_without_the_extension_names_the_remedy() -> None:
    done = run_without_extension(
        "from sfrl.ipc.index_queue import resolve_queue_kind\n"
        "try:\n"
        "    resolve_queue_kind('lock-free')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    assert "sfrl.ipc._index_queue" in done.stdout
    assert "--queue=faster-fifo" in done.stdout
