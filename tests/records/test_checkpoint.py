import errno
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sfrl.records import checkpoint
from sfrl.records.checkpoint import REQUIRED_KEYS, CheckpointError
from tests.killing import killed_at


def make_state(learner_steps: int = 7) -> dict:
    torch.manual_seed(learner_steps)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "counters": {"learner_steps": learner_steps},
        "config": {"env": "Pong", "run_dir": "runs/x", "train_frames": None},
        "rng": {
            "numpy": np.random.default_rng(1).bit_generator.state,  # holds 128-bit integers
            "torch": torch.get_rng_state(),
        },
    }


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


class RunsCode:
    """Pickled, it is an order to touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# --- round trip ---


def test_what_is_loaded_is_what_was_saved(tmp_path):
    state = make_state()
    path = checkpoint.save(tmp_path, state, env_frames=1234)
    assert path == tmp_path / "checkpoints" / "latest-000000001234.pt"
    loaded, found = checkpoint.load_latest(tmp_path)
    assert found == path
    assert set(loaded) == set(REQUIRED_KEYS)
    assert all(torch.equal(loaded["model"][key], state["model"][key]) for key in state["model"])
    assert torch.equal(
        loaded["optimizer"]["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"]
    )
    assert loaded["rng"]["numpy"] == state["rng"]["numpy"]
    assert torch.equal(loaded["rng"]["torch"], state["rng"]["torch"])
    assert (loaded["counters"], loaded["config"]) == (state["counters"], state["config"])


def test_only_the_newest_three_are_kept_and_best_stays(tmp_path):
    checkpoint.save_best(tmp_path, make_state(), score=3.0)
    for env_frames in (100, 200, 300, 400, 500):
        checkpoint.save(tmp_path, make_state(), env_frames)
    kept = [f"latest-{frames:012d}.pt" for frames in (300, 400, 500)]
    assert names(tmp_path) == ["best.pt", *kept]


def test_newest_is_by_frames_not_by_name(tmp_path):
    older = checkpoint.save(tmp_path, make_state(), 999_999_999_999)
    newer = checkpoint.save(tmp_path, make_state(), 1_000_000_000_000)
    assert checkpoint.latest_paths(tmp_path) == [newer, older]


def test_a_resumed_run_puts_aside_the_newer_checkpoints_that_it_could_not_read(tmp_path):
    for env_frames in (100, 200, 300):
        checkpoint.save(tmp_path, make_state(), env_frames)
    newest = checkpoint.save(tmp_path, make_state(), 150)  # it went on from 100
    assert checkpoint.latest_paths(tmp_path)[0] == newest
    assert names(tmp_path) == [
        "latest-000000000100.pt",
        "latest-000000000150.pt",
        "latest-000000000200.pt.left",
        "latest-000000000300.pt.left",
    ]
    checkpoint.load(tmp_path / "checkpoints" / "latest-000000000300.pt.left")


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "file"])
def test_what_looks_like_a_newer_checkpoint_hinders_none(tmp_path, kind):
    """A folder of the name, say; or a stranger's file, which is of a course that is not ours."""
    folder = tmp_path / "checkpoints"
    intruder = folder / "latest-999999999999.pt"
    (tmp_path / "target").write_bytes(b"precious")
    folder.mkdir()
    match kind:
        case "folder":
            (intruder / "more").mkdir(parents=True)
        case "link":
            intruder.symlink_to(tmp_path / "target")
        case "pipe":
            os.mkfifo(intruder)
        case "file":
            intruder.write_bytes(b"no checkpoint")
    for env_frames in (100, 200, 300, 400, 500):
        path = checkpoint.save(tmp_path, make_state(), env_frames)
        assert path.name == f"latest-{env_frames:012d}.pt"
        assert checkpoint.load_latest(tmp_path).path == path
    kept = [f"latest-{frames:012d}.pt" for frames in (300, 400, 500)]
    assert [name for name in names(tmp_path) if intruder.name not in name] == kept
    assert os.path.lexists(intruder) == (kind != "file")
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_find_by_name_and_by_path(tmp_path):
    latest = checkpoint.save(tmp_path, make_state(1), 100)
    best = checkpoint.save_best(tmp_path, make_state(2), score=3.5)
    assert checkpoint.find(tmp_path, "latest").path == latest
    assert checkpoint.find(tmp_path, "best").path == best
    assert checkpoint.find(tmp_path, "best").state["score"] == 3.5
    assert checkpoint.find(tmp_path, str(latest)).state["counters"]["learner_steps"] == 1


@pytest.mark.parametrize(
    ("which", "message"),
    [("latest", "no checkpoint"), ("best", "--checkpoint=latest"), ("/no/x.pt", "not exist")],
)
def test_what_is_not_there_is_an_error_with_a_remedy(tmp_path, which, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.find(tmp_path, which)


# --- what save refuses ---


@pytest.mark.parametrize("key", [key for key in REQUIRED_KEYS if key != "version"])
def test_a_state_without_a_required_key_is_not_written(tmp_path, key):
    state = make_state()
    del state[key]
    with pytest.raises(ValueError, match=key):
        checkpoint.save(tmp_path, state, 100)
    assert checkpoint.latest_paths(tmp_path) == []


def test_a_state_that_could_not_be_loaded_again_is_not_written(tmp_path):
    before = checkpoint.save(tmp_path, make_state(), 100)
    with pytest.raises(CheckpointError, match=r"not written.*PosixPath"):
        checkpoint.save(tmp_path, make_state() | {"config": {"path": tmp_path}}, 200)
    assert names(tmp_path) == [before.name]


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.save(tmp_path, make_state(), 100, keep=0)


# --- damage ---


def test_a_flipped_bit_anywhere_is_an_error_or_harmless(tmp_path):
    state = make_state()
    path = checkpoint.save(tmp_path, state, 100)
    whole = path.read_bytes()
    weight = whole.index(state["model"]["weight"].numpy().tobytes())
    rng = np.random.default_rng(0)
    # Half at random, half in the archive's table of contents; and one in the midst of a weight.
    offsets = [*rng.integers(len(whole), size=200), *rng.integers(-1500, 0, size=200)]
    for offset in [weight + 5, *(int(offset) % len(whole) for offset in offsets)]:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except CheckpointError:
            continue
        assert offset != weight + 5
        assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
        assert loaded["counters"] == state["counters"]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
def test_of_a_truncated_file_the_one_before_is_used_with_a_warning(tmp_path, caplog, fraction):
    before = checkpoint.save(tmp_path, make_state(1), 100)
    newest = checkpoint.save(tmp_path, make_state(2), 200)
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(len(whole) * fraction)])
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load_latest(tmp_path)
    assert loaded.path == before
    assert loaded.state["counters"]["learner_steps"] == 1
    assert str(newest) in caplog.text


def test_all_damaged_is_an_error_that_is_told_once(tmp_path, caplog):
    path = checkpoint.save(tmp_path, make_state(), 100)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=f"no checkpoint that can be read; {path} cannot"):
        checkpoint.load_latest(tmp_path)
    assert not caplog.messages
    path.unlink()
    with pytest.raises(CheckpointError, match="train for longer, or name another run"):
        checkpoint.load_latest(tmp_path)


def test_only_of_a_run_s_checkpoints_it_is_advised_to_delete_them(tmp_path):
    of_a_run, of_none = tmp_path / "checkpoints" / "best.pt", tmp_path / "passwd"
    of_a_run.parent.mkdir()
    for content, reason in {
        b"": "it is empty",
        b"root": "it has 4 bytes",
        b"x" * 999: "it does",
    }.items():
        for path, remedy in {
            of_a_run: "; delete it and use an",
            of_none: "; check the path, or",
        }.items():
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=f"ArchiveError: {reason}.*{remedy}"):
                checkpoint.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"version": 1, "model": {}}, "lacks optimizer, counters, config, rng"),
        (dict.fromkeys(REQUIRED_KEYS, 99), "format version 99"),
    ],
)
def test_a_file_that_is_not_our_checkpoint_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, zipped):
    path, trace = tmp_path / "x.pt", tmp_path / "trace"
    state = make_state() | {"version": 1, "trap": RunsCode(trace)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"x\.pt cannot be read"):
        checkpoint.load(path)
    assert not trace.exists()
    if zipped:  # the trap does work where it is let loose
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_synced_keeps_no_checkpoint_from_counting(
    number, tmp_path, monkeypatch
):
    """As of a VirtualBox, whose shared folders cannot."""
    synced = os.fsync

    def fsync(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        synced(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            checkpoint.save(tmp_path, make_state(1), 100)
        return
    saved = [checkpoint.save(tmp_path, make_state(n), 100 * n) for n in range(1, 5)]
    assert names(tmp_path) == [path.name for path in saved[-3:]]


# --- kills ---


KILLED_WRITES = """
import os, signal, sys
from pathlib import Path
from sfrl.records import checkpoint
from tests.records.test_checkpoint import make_state

def half_a_write(fd):
    os.ftruncate(fd, os.fstat(fd).st_size // 2)
    kill()

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

state = make_state(2)
steps = {"half": ("fsync", half_a_write), "fsync": ("fsync", kill), "replace": ("replace", kill)}
for step, (name, fatal) in steps.items():
    if os.fork() == 0:
        setattr(os, name, fatal)
        checkpoint.save(Path(sys.argv[1]) / step, state, 200)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


def test_a_kill_within_a_write_leaves_the_one_before(tmp_path):
    runs = [tmp_path / step for step in ("half", "fsync", "replace")]
    before = [checkpoint.save(run, make_state(1), 100) for run in runs]
    subprocess.run([sys.executable, "-c", KILLED_WRITES, str(tmp_path)], check=True, timeout=60)
    for run, path in zip(runs, before, strict=True):
        assert names(run) == [path.name, "latest-000000000200.pt.tmp"]
        assert checkpoint.load_latest(run).path == path
        after = checkpoint.save(run, make_state(3), 300)
        assert names(run) == [path.name, after.name]  # what was left behind is swept


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
def test_a_checkpoint_can_be_loaded_wherever_its_writer_was_killed(tmp_path):
    """Then the next one is written as if nothing had been."""
    frames, line = 100, 0
    checkpoint.save(tmp_path, make_state(frames), frames)
    while killed_at(line, lambda: checkpoint.save(tmp_path, make_state(0), 10**6), [checkpoint]):
        state, path = checkpoint.load_latest(tmp_path)
        expected = {0: 10**6, frames: frames}[state["counters"]["learner_steps"]]
        assert path.name == f"latest-{expected:012d}.pt"
        frames, line = frames + 1, line + 1
        checkpoint.save(tmp_path, make_state(frames), frames)
        assert checkpoint.load_latest(tmp_path).path.name == f"latest-{frames:012d}.pt"
        assert not list(tmp_path.glob("checkpoints/*.tmp"))
    assert line > 30


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(tmp_path):
    checkpoint.save(tmp_path, make_state(1), 100)
    size = checkpoint.latest_paths(tmp_path)[0].stat().st_size
    for room in (0, 1000, size - 1):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                checkpoint.save(tmp_path, make_state(2), 200)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names(tmp_path) == ["latest-000000000100.pt"]
        assert checkpoint.load_latest(tmp_path).state["counters"]["learner_steps"] == 1


# --- runs ---


def make_run(root: Path, name: str, env: str, started: int) -> Path:
    config = root / name / "config.json"
    (root / name / "checkpoints").mkdir(parents=True)
    (root / name / "checkpoints" / "latest-000000000001.pt").touch()
    config.write_text(json.dumps({"env": env}))
    os.utime(config, (started, started))
    return config.parent


def test_newest_run_is_the_one_started_last(tmp_path):
    make_run(tmp_path, "z-old", "Pong", 1000)
    pong = make_run(tmp_path, "b", "Pong", 2000)
    breakout = make_run(tmp_path, "a-new", "Breakout", 3000)
    (tmp_path / "no-config").mkdir()
    stopped_early = make_run(tmp_path, "c", "Breakout", 4000)
    (stopped_early / "checkpoints" / "latest-000000000001.pt").unlink()
    assert checkpoint.newest_run(tmp_path) == breakout
    for name in ("Pong", "pong", "ALE/Pong-v5"):
        assert checkpoint.newest_run(tmp_path, name) == pong


def test_a_run_with_a_damaged_config_is_passed_over_with_a_warning(tmp_path, caplog):
    pong = make_run(tmp_path, "pong", "Pong", 1000)
    damaged = make_run(tmp_path, "damaged", "Pong", 2000)
    (damaged / "config.json").write_text('{"env": "Po')
    assert checkpoint.newest_run(tmp_path, "Pong") == pong
    assert "damaged" in caplog.text
    for content in ('{"env": 5}', '{"env": ["Pong"]}', "[]"):
        (damaged / "config.json").write_text(content)
        assert checkpoint.newest_run(tmp_path, "Pong") == pong


def test_a_config_that_leads_nowhere_hides_no_other_run(tmp_path, caplog):
    pong = make_run(tmp_path, "pong", "Pong", 1000)
    for name, make in (("link", lambda p: p.symlink_to("nowhere")), ("pipe", os.mkfifo)):
        config = make_run(tmp_path, name, "Pong", 2000) / "config.json"
        config.unlink()
        make(config)
    assert checkpoint.newest_run(tmp_path, "Pong") == pong
    assert "link/config.json is not JSON" in caplog.text


def test_no_run_is_an_error_with_a_remedy(tmp_path):
    make_run(tmp_path, "a", "Pong", 1000)
    with pytest.raises(
        CheckpointError, match=r"no run of --env=Breakout with a checkpoint.*--run-dir"
    ):
        checkpoint.newest_run(tmp_path, "Breakout")
    with pytest.raises(CheckpointError, match="no run with a checkpoint in"):
        checkpoint.newest_run(tmp_path / "nowhere")


def test_the_best_score_is_that_of_the_file(tmp_path, caplog):
    assert checkpoint.best_score(tmp_path) is None
    path = checkpoint.save_best(tmp_path, make_state(), 17.5)
    assert checkpoint.best_score(tmp_path) == 17.5
    path.write_bytes(b"damaged")
    assert checkpoint.best_score(tmp_path) is None
    assert "best.pt" in caplog.text
