"""Watchdog: what counts as hanging, and what is told of the rest. Whole runs: test_faults.py."""

import signal
import subprocess
import sys
import time

import pytest

from sfrl import watchdog
from sfrl.watchdog import Watchdog


@pytest.fixture
def process():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


def looks(watched: Watchdog, seconds: float) -> list[str]:
    """What it says in this time."""
    complaints = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        complaints += watched.stalled().values()
        time.sleep(0.02)
    return complaints


def test_a_stopped_process_does_not_hang_but_is_told_of_once(
    make_shared, process, monkeypatch, caplog
):
    monkeypatch.setattr(watchdog, "_SUSPENSION_S", 0.5)
    monkeypatch.setattr(watchdog, "START_LIMIT_S", 1.0)
    shared = make_shared(env="CartPole-v1", frameskip=1, num_workers=1, batch_size=128)
    watched = Watchdog(shared.config, shared.progress)
    process.send_signal(signal.SIGSTOP)
    watched.watch("learner", process.pid)
    assert looks(watched, 2) == []
    [text] = [record.getMessage() for record in caplog.records]
    assert text.startswith(f"learner (pid {process.pid}) has been stopped, or has waited")
    process.send_signal(signal.SIGCONT)
    assert looks(watched, 2)[0] == "has not begun to work for 1 s"
