"""--video-every: films of a run that goes on, by a process of its own that gives way to all."""

import dataclasses
import math
import os
import re
import signal
import subprocess
from contextlib import suppress

import psutil
import pytest
import torch

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.callbacks import RunStart
from sfrl.records import checkpoint
from sfrl.records.start import this_start
from sfrl.run import filming
from sfrl.run.filming import Filming
from sfrl.settings.algorithms import make_config
from sfrl.settings.config import ConfigError
from tests.runs import TINY, components, finish, group, hasten, interrupt, training, wait_for

FRAMES = 640


@pytest.fixture
def started(tmp_path):
    """A `Filming` of a run that has a checkpoint, of a network that has learned nothing."""
    config = make_config(
        {
            "env": "CartPole-v1",
            "model": "mlp",
            "frameskip": 1,
            "video_every": 1e-3,
            "checkpoint_seconds": 1e-3,
            "run_dir": str(tmp_path),
        }
    )
    torch.manual_seed(0)
    model = make_algorithm(config, envs.describe(config.env, config.env_options)).make_model()
    state = {"model": model.state_dict(), "optimizer": {}, "rng": {}}
    state |= {"config": dataclasses.asdict(config), "counters": {"env_frames": FRAMES}}
    checkpoint.save(tmp_path, state, FRAMES)
    made = Filming(config)
    made.begin(RunStart(tmp_path, config.env, {}, [this_start(0)]))
    yield made
    made.end()


def film(started, path):
    """What becomes of a checkpoint, once the process has ended."""
    wait_for(lambda: started.checkpoint(path) or started._child)
    process = started._child.process
    wait_for(lambda: hasten(process.pid) or process.poll() is not None)  # also on a busy machine
    started.report({})
    assert started._child is None


def test_the_latest_and_the_best_of_some_episodes_are_filmed(started, tmp_path, caplog):
    caplog.set_level("INFO", "sfrl")
    started._every_s, started._next_s = 600.0, math.inf  # a fifth of 600 s is enough
    started.checkpoint(tmp_path)
    assert started._child is None  # not due
    started._next_s = 0.0
    film(started, tmp_path)
    [(latest, last, best, most)] = re.findall(
        r"video: (\S+) \(score (\d+)\), (\S+) \(score (\d+)\)", caplog.text
    )
    videos = tmp_path / "videos"
    assert (latest, best) == tuple(f"{videos}/{FRAMES:012d}-{n}.mp4" for n in ("latest", "best"))
    assert 0 < int(last) < int(most)
    assert sorted(p.name for p in videos.iterdir()) == [os.path.basename(p) for p in (best, latest)]
    assert all((videos / name).stat().st_size > 1000 for name in (latest, best))


def test_what_goes_wrong_is_a_warning_and_the_next_one_is_filmed(started, tmp_path, caplog):
    caplog.set_level("INFO", "sfrl")
    [path] = checkpoint.latest_paths(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(b"no checkpoint")
    film(started, tmp_path)
    assert re.search(
        r"no video: the process that films exited with 1; .*no checkpoint", caplog.text
    )
    path.write_bytes(whole)
    film(started, tmp_path)
    # A fifth of a millisecond is time for one episode alone.
    assert re.search(r"video: \S+-latest\.mp4 \(score \d+\)$", caplog.text, re.M)
    assert [p.name for p in (tmp_path / "videos").iterdir()] == [f"{FRAMES:012d}-latest.mp4"]


def test_one_that_hangs_is_ended(started, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(filming, "START_LIMIT_S", 0.0)
    wait_for(lambda: started.checkpoint(tmp_path) or started._child)
    process = started._child.process
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: started.report({}) or not started._child)
    assert process.poll() == -signal.SIGKILL
    assert "took more than the interval" in caplog.text


def test_a_run_films_in_time_that_nobody_wants_and_ctrl_c_leaves_nothing_of_it(tmp_path):
    flags = [*TINY, "--video-every=0.3s", "--checkpoint-seconds=0.3"]
    with training(tmp_path, *flags) as process:
        wait_for(lambda: _is_idle(components(process.pid).get("film")))
        wait_for(lambda: _hasten_films(process) or list(tmp_path.glob("videos/*-latest.mp4")))
        interrupt(process)
        ended = finish(process)
        assert ended.code == 0, ended.stderr
        wait_for(lambda: not group(process.pid))
    assert "no video" not in ended.stderr
    assert list(tmp_path.glob("videos/unfinished-*")) == []


def _is_idle(process: psutil.Process | None) -> bool:
    """Not one that has ended meanwhile, either."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        return (
            process is not None
            and process.nice() == 19
            and os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        )
    return False


def _hasten_films(process: subprocess.Popen[str]) -> None:
    if "film" in (named := components(process.pid)):
        hasten(named["film"].pid)


def test_an_environment_without_pictures_is_refused_before_anything_starts():
    config = make_config({"env": "tests.tiny_envs:Catch-v0", "frameskip": 1, "video_every": 600.0})
    with pytest.raises(ValueError, match=r"Catch-v0 cannot be filmed: .* lack 'rgb_array'"):
        Filming(config)


def test_it_films_no_more_often_than_there_are_checkpoints():
    with pytest.raises(
        ConfigError, match=r"video_every=60(\.0)? must be at least checkpoint_seconds=90"
    ):
        make_config({"video_every": 60.0, "checkpoint_seconds": 90.0})
