import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from sfrl.shared_memory import (
    SHM_DIR,
    SharedArray,
    StopFlag,
    sweep_stale_segments,
    unlink_segments,
)


def test_a_segment_carries_the_pid_of_its_maker_and_is_private():
    array = SharedArray("test", (3,), np.int64)
    assert array.path.name.startswith(f"sfrl-{os.getpid()}-")
    assert stat.S_IMODE(array.path.stat().st_mode) == 0o600
    array.unlink()
    assert not array.path.exists()


def test_a_segment_starts_as_zeros_and_keeps_its_shape():
    array = SharedArray("test", (2, 3), np.float32)
    assert array.array.shape == (2, 3)
    assert (array.array == 0).all()
    array.unlink()


def test_space_is_reserved_so_that_a_full_shm_is_an_error_at_once():
    total = os.statvfs(SHM_DIR).f_frsize * os.statvfs(SHM_DIR).f_blocks
    with pytest.raises(MemoryError, match=r"needs \d+ MiB .* has \d+ MiB available"):
        SharedArray("test", (2 * total,), np.uint8)
    assert not list(SHM_DIR.glob(f"sfrl-{os.getpid()}-*-test"))


def test_sweeping_takes_the_segments_of_dead_processes_alone():
    code = "import numpy; from sfrl.shared_memory import SharedArray as S; S('dead', (1,), 'u1')"
    child = subprocess.run(
        [sys.executable, "-c", code + "; import os; print(os.getpid())"],
        check=True,
        capture_output=True,
        text=True,
    )
    mine = SharedArray("alive", (1,), np.uint8)
    swept = sweep_stale_segments()
    assert any(name.startswith(f"sfrl-{child.stdout.strip()}-") for name in swept)
    assert not list(SHM_DIR.glob(f"sfrl-{child.stdout.strip()}-*"))
    assert mine.path.exists()
    mine.unlink()


def test_unlink_segments_takes_those_of_one_pid():
    array = SharedArray("test", (1,), np.uint8)
    unlink_segments(os.getpid())
    assert not array.path.exists()


def test_the_stop_flag_is_set_once_for_all():
    stop = StopFlag()
    assert not stop.is_set
    stop.set()
    assert stop.is_set
    assert stop.word[0] == 1
    stop.unlink()
