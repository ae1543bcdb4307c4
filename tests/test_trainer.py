"""Trainer: its clock, its warnings, and which weights it asks the learner to keep."""

import importlib.util
import os
import time

from sfrl.config import Config
from sfrl.metrics import EPISODE_WINDOW
from sfrl.shared_memory import unlink_segments
from sfrl.trainer import Trainer, slower_than_need_be


def config(tmp_path, **settings):
    settings = {"num_workers": 1, "run_dir": str(tmp_path), **settings}
    return Config(env="CartPole-v1", frameskip=1, model="mlp", **settings)


def test_the_clock_runs_from_the_command_on(tmp_path):
    trainer = Trainer(config(tmp_path), started_s=time.monotonic() - 100)
    assert 100 <= trainer.metrics.state()["time_s"] < 200
    assert 100 <= trainer._summary().seconds < 200
    unlink_segments(os.getpid())


def test_what_makes_a_run_slower_is_told(tmp_path, monkeypatch):
    assert slower_than_need_be(config(tmp_path)) == []
    monkeypatch.setattr(importlib.util, "find_spec", {"envs._screen": object()}.get)
    missing, threads = slower_than_need_be(config(tmp_path, threads_per_worker=2))
    assert missing.startswith("sfrl._images could not be built")
    assert threads.startswith("threads_per_worker=2 has no effect")


def test_weights_are_kept_as_the_best_only_for_the_score_they_have_now(tmp_path):
    """A score passed between two requests belongs to weights that are gone."""
    trainer = Trainer(config(tmp_path))
    kept = []
    for scores in ([5], [9, 4], [6], []):
        for score in scores:
            for _ in range(EPISODE_WINDOW):
                trainer.metrics.add_episode(score, length=1)
        trainer._request_checkpoint()
        [request] = trainer.crew._requests.get_all()
        kept.append(request.best_score)
    assert kept == [5, None, 6, None]
    unlink_segments(os.getpid())
