import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sfrl.ipc import shared_memory
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


@pytest.fixture
def own_shm_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Part of /dev/shm that nobody else sweeps: every trainer does, also one of another test."""
    unlink_segments()
    folder = Path(tempfile.mkdtemp(dir=SHM_DIR))
    monkeypatch.setattr(shared_memory, "SHM_DIR", folder)
    yield folder
    unlink_segments()
    shutil.rmtree(folder)


@contextmanager
def other_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """One that has a segment, until it is killed, and its folder, in `folder`."""
    code = (
        "import sys; from pathlib import Path; from sfrl.ipc import shared_memory as m;"
        "m.SHM_DIR = Path(sys.argv[1]); array = m.SharedArray('other', (1,), 'u1');"
        "print(array.path, flush=True); sys.exit(input())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        yield child, Path(child.stdout.readline().strip()).parent


def test_sweeping_takes_the_segments_of_dead_processes_alone(own_shm_dir):
    with other_process(own_shm_dir) as (child, folder):
        mine = SharedArray("alive", (1,), np.uint8)
        assert sweep_stale_segments() == []
        child.kill()
        child.wait()
        assert sweep_stale_segments(os.getpid()) == []
        assert sweep_stale_segments() == [folder.name]
    assert folder.name.startswith(f"sfrl-{child.pid}-")
    assert not folder.exists()
    assert mine.path.exists()


def test_a_living_run_is_left_alone_by_those_who_cannot_see_its_process(own_shm_dir):
    """As in another container that shares /dev/shm, where the pid means nothing or another one."""
    with other_process(own_shm_dir) as (child, folder):
        renamed = folder.rename(own_shm_dir / "sfrl-999999999-test")  # the pid of nobody
        assert sweep_stale_segments() == []
        assert list(renamed.iterdir())
        child.kill()
        child.wait()
        assert sweep_stale_segments() == [renamed.name]
    assert not renamed.exists()


def test_who_ends_leaves_nothing(own_shm_dir):
    with other_process(own_shm_dir) as (child, folder):
        assert folder.exists()
        child.communicate("for a reason\n")
    assert child.returncode == 1
    assert list(own_shm_dir.iterdir()) == []


def test_a_trainer_tells_what_it_has_swept(own_shm_dir, make_shared, caplog):
    with other_process(own_shm_dir) as (child, folder):
        child.kill()
        child.wait()
        make_shared()
    assert f"removed {folder.name}, which a dead run had left in shared memory" in caplog.text
    assert not folder.exists()


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
