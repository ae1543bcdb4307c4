import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from sfrl.ipc.shared_memory import (
    SHM_DIR,
    SharedArray,
    StopFlag,
    sweep_stale_segments,
    unlink_segments,
)


def test_a_segment_carries_the_pid_of_its_maker_and_is_private():
    array = SharedArray("test", (3,), np.int64)
    folder = array.path.parent
    assert folder.parent == SHM_DIR
    assert folder.name.startswith(f"sfrl-{os.getpid()}-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(array.path.stat().st_mode) == 0o600
    array.unlink()
    assert not array.path.exists()


@pytest.mark.parametrize("key", ["walker/height", "../up", "a" * 300, "\0", "größe", ""])
def test_a_segment_may_be_named_by_any_key_of_an_environments_dict(key):
    arrays = [SharedArray(f"obs.{key}", (1,), np.int64) for _ in range(2)]
    paths = {array.path for array in arrays}
    assert len(paths) == 2, "the same name twice"
    assert all(path.parent.parent == SHM_DIR and path.exists() for path in paths)
    for array in arrays:
        array.unlink()


def test_a_segment_starts_as_zeros_and_keeps_its_shape():
    array = SharedArray("test", (2, 3), np.float32)
    assert array.array.shape == (2, 3)
    assert (array.array == 0).all()
    array.unlink()


def test_space_is_reserved_so_that_a_full_shm_is_an_error_at_once():
    total = os.statvfs(SHM_DIR).f_frsize * os.statvfs(SHM_DIR).f_blocks
    with pytest.raises(MemoryError, match=r"needs \d+ MiB .* has \d+ MiB available"):
        SharedArray("test", (2 * total,), np.uint8)
    assert not list(SHM_DIR.glob(f"sfrl-{os.getpid()}-*/*-test"))


MAKES_A_SEGMENT = (
    "import os; from sfrl.ipc.shared_memory import SharedArray as S; S('dead', (1,), 'u1');"
    "print(os.getpid(), flush=True);"
)


def test_sweeping_takes_the_segments_of_dead_processes_alone():
    child = subprocess.run(
        [sys.executable, "-c", MAKES_A_SEGMENT], check=True, capture_output=True, text=True
    )
    pid = int(child.stdout)
    mine = SharedArray("alive", (1,), np.uint8)
    assert sweep_stale_segments(os.getpid()) == []
    assert any(name.startswith(f"sfrl-{pid}-") for name in sweep_stale_segments())
    assert not list(SHM_DIR.glob(f"sfrl-{pid}-*"))
    assert mine.path.exists()
    mine.unlink()


def test_a_living_run_is_left_alone_by_those_who_cannot_see_its_process():
    """As in another container that shares /dev/shm, where the pid means nothing or another one."""
    with subprocess.Popen(
        [sys.executable, "-c", MAKES_A_SEGMENT + "input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        [folder] = SHM_DIR.glob(f"sfrl-{int(child.stdout.readline())}-*")
        renamed = folder.rename(SHM_DIR / "sfrl-999999999-test")  # the pid of nobody
        assert sweep_stale_segments() == []
        assert list(renamed.iterdir())
        child.kill()
        child.wait()
        assert sweep_stale_segments() == [renamed.name]
    assert not renamed.exists()


def test_unlink_segments_takes_all_of_this_process():
    array = SharedArray("test", (1,), np.uint8)
    unlink_segments()
    assert not array.path.parent.exists()
    again = SharedArray("test", (1,), np.uint8)
    assert again.path.exists()
    unlink_segments()


def test_the_stop_flag_is_set_once_for_all():
    stop = StopFlag()
    assert not stop.is_set
    stop.set()
    assert stop.is_set
    assert stop.word[0] == 1
    stop.unlink()
