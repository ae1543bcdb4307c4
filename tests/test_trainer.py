"""Trainer: which weights it asks the learner to keep."""

import os

from sfrl.config import Config
from sfrl.metrics import EPISODE_WINDOW
from sfrl.shared_memory import unlink_segments
from sfrl.trainer import Trainer


def test_weights_are_kept_as_the_best_only_for_the_score_they_have_now(tmp_path):
    """A score passed between two requests belongs to weights that are gone."""
    trainer = Trainer(
        Config(env="CartPole-v1", frameskip=1, model="mlp", num_workers=1, run_dir=str(tmp_path))
    )
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
