"""Trainer: its clock, its warnings, and which weights it asks the learner to keep."""

import sys
import time
from pathlib import Path

import pytest

from sfrl import envs
from sfrl.envs import ActionSpec, EnvSpec, Leaf
from sfrl.ipc.messages import CheckpointFailed, CheckpointSaved
from sfrl.ipc.shared_memory import unlink_segments
from sfrl.records.metrics import EPISODE_WINDOW
from sfrl.run.trainer import Trainer, slower_than_need_be
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.config import ConfigError


def config(tmp_path, **settings):
    cart_pole = {"env": "CartPole-v1", "frameskip": 1, "model": "mlp"}
    return ActorCriticConfig(
        **{**cart_pole, "num_workers": 1, "run_dir": str(tmp_path), **settings}
    )


def test_the_clock_runs_from_the_command_on(tmp_path):
    trainer = Trainer(config(tmp_path), started_s=time.monotonic() - 100)
    assert 100 <= trainer.metrics.state()["time_s"] < 200
    assert 100 <= trainer._summary().seconds < 200
    unlink_segments()


def test_the_time_limit_counts_what_came_before_the_first_frame(tmp_path):
    started_s = time.monotonic() - 100
    trainer = Trainer(config(tmp_path, train_seconds=300.0), started_s=started_s)
    assert trainer._time_limit() == pytest.approx(300, abs=1)
    unlink_segments()


def test_logs_name_files_as_one_types_them_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(config(tmp_path / "runs/x"))
    assert trainer._told(trainer.run_dir / "checkpoints") == Path("runs/x/checkpoints")
    assert trainer._told("/elsewhere/x") == Path("/elsewhere/x")
    monkeypatch.chdir("/")  # as an environment may, with --serial
    assert trainer._told(trainer.run_dir) == Path("runs/x")
    unlink_segments()


def test_settings_that_are_not_complete_are_refused_or_completed(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        Trainer(ActorCriticConfig(env="CartPole-v1", run_dir=str(tmp_path)))
    assert str(refusal.value) == (
        "a Trainer takes complete settings, which sfrl.train makes of those given: "
        "frameskip=4 is for Atari games, and CartPole-v1 is none; leave it out"
    )
    assert Trainer(config(tmp_path, model="auto")).config.model == "norm_mlp"
    unlink_segments()


def test_what_makes_a_run_slower_is_told(tmp_path, monkeypatch):
    screens = Leaf("obs", "image", (3, 72, 96), "uint8", 255.0)
    doom = EnvSpec("image", (screens,), ActionSpec((4,)), frameskip=1)

    def told(env, spec=None, **settings):
        spec = spec or envs.describe(env)
        settings |= {"env": env, "frameskip": spec.frameskip}
        return slower_than_need_be(config(tmp_path, **settings), spec)

    for model in ("nature_cnn", "pooled_cnn"):
        assert told("Pong", model=model) == []
    for module in ("sfrl.envs._areas", "sfrl.envs._screen", "sfrl.nets._images"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    assert told("CartPole-v1") == []  # needs none of them
    for model in ("nature_cnn", "pooled_cnn"):
        screen, images = told("Pong", model=model)
        assert screen.startswith("sfrl.envs._screen could not be built, and NumPy")
        assert images.startswith("sfrl.nets._images could not be built, and torch")
    (screen,) = told("Pong", model="impala_resnet")
    assert screen.startswith("sfrl.envs._screen")
    monkeypatch.setitem(sys.modules, "sfrl.nets._sparse_conv", None)
    monkeypatch.setattr("sfrl.run.trainer.cpu_flags", lambda: {"sse2", "avx2"})
    assert told("Pong", model="pooled_cnn")[2].startswith("sfrl.nets._sparse_conv could not be")
    monkeypatch.setattr("sfrl.run.trainer.cpu_flags", lambda: {"avx2", "amx_tile"})
    assert len(told("Pong", model="pooled_cnn")) == 2  # torch is as fast there
    monkeypatch.setitem(sys.modules, "sfrl.ipc._index_queue", None)
    [queues] = told("CartPole-v1")
    assert "and faster-fifo does its work, slower, and a killed worker ends the run" in queues
    assert told("CartPole-v1", queue="faster-fifo") == []
    monkeypatch.delitem(sys.modules, "sfrl.ipc._index_queue")
    (areas,) = told("Doom-v0", doom, model="impala_resnet")
    assert areas.startswith("sfrl.envs._areas")
    assert told("Doom-v0", doom, model="impala_resnet", image_size=0) == []


def test_weights_are_kept_as_the_best_only_for_the_score_they_have_now(tmp_path):
    """A score passed between two requests belongs to weights that are gone."""
    trainer = Trainer(config(tmp_path))
    kept = []
    for scores in ([5], [9, 4], [6], []):
        for score in scores:
            for _ in range(EPISODE_WINDOW):
                trainer.metrics.add_episode(score, length=1)
        trainer._request_checkpoint(is_last=False)
        [request] = trainer.crew._requests.get_all()
        kept.append(request.best_score)
        trainer.crew._received.append(CheckpointSaved("latest.pt", request.best_score))
        trainer._collect()
    assert kept == [5, None, 6, None]
    unlink_segments()


def test_a_best_that_the_disk_did_not_take_is_asked_for_again(tmp_path):
    trainer = Trainer(config(tmp_path))
    for _ in range(EPISODE_WINDOW):
        trainer.metrics.add_episode(5, length=1)
    kept = []
    for outcomes in ([CheckpointFailed("no room")], [CheckpointSaved("latest.pt", 5)], []):
        trainer._request_checkpoint(is_last=False)
        [request] = trainer.crew._requests.get_all()
        kept.append(request.best_score)
        trainer.crew._received.extend(outcomes)
        trainer._collect()
    assert kept == [5, 5, None]
    unlink_segments()
