from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sfrl.settings.fields import USUAL, Count, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """The optimizer."""

    optimizer: Literal["adam", "muon", "rmsprop", "sgd"] = "adam"
    """adam; muon, for the encoder's weights, which go in all directions alike, with adam for the
    rest; IMPALA's rmsprop; or sgd: the gradient times the learning rate. Atari's games have muon,
    --lr-schedule=root, --epochs=1 and a rate of 2e-3, with --loss=appo and pooled_cnn or
    nature_cnn; with --optimizer=adam they have nature_cnn, linear, 2 epochs and 1e-3."""
    optimizer_eps: Positive = 1e-5
    """Added to the denominator of the update. IMPALA's rmsprop uses 0.01."""
    learning_rate: Annotated[Positive, USUAL] = 1e-3
    """At the start, or throughout if the schedule is constant."""
    lr_schedule: Literal["linear", "root", "constant"] = "linear"
    """linear: falls to 0 at --train-frames. root: is divided by the root of 1 + frames / 250,000,
    wherever the run ends. Both count frames, so that a resumed run goes on."""
    max_grad_norm: Positive = 0.5
    """Gradients are scaled down to this norm."""
    updates: Literal["racy", "locked"] = "racy"
    """Of weights that several learners share: racy, all write at any time; locked, one at a
    time."""
    optimizer_statistics: Literal["shared", "private"] = "shared"
    """Whose rmsprop's means of squares are, where several learners share weights: of all, or each
    learner's own."""
    max_skipped_steps: Count = 20
    """This many non-finite losses or gradients in a row end the run; single ones are skipped."""

    @property
    def rate_factors(self) -> tuple[float, ...]:
        """Learning rates of the model's networks, in multiples of `learning_rate`."""
        return (1.0,)
