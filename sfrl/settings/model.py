from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sfrl.nets.choose import MemorySpec
from sfrl.settings.fields import USUAL, Count, Settings, at_least


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """The model."""

    model: Annotated[str, USUAL] = "auto"
    """a3c_cnn, nature_cnn, pooled_cnn, impala_resnet, small_cnn, mlp, norm_mlp, flat, or your own
    encoder as module:Class. auto: pooled_cnn for Atari's games with --optimizer=muon, nature_cnn
    for other images of 36x36 and more, small_cnn from 5x5 on, norm_mlp for the rest, flat for sac's
    vectors. Of a Dict or Tuple each part has an encoder; parts that the model is not for have the
    usual ones."""
    normalize_obs: bool = False
    """Give networks vectors less their running mean, in units of their running deviation."""
    rnn: Annotated[Literal["none", "gru", "lstm"], USUAL] = "none"
    """Memory between encoder and heads."""
    rnn_size: Annotated[int, at_least(0)] = 0
    """Width of the memory's layers; 0 without one. Given alone it means a GRU."""
    rnn_layers: Count = 1
    """Layers of the memory."""

    @property
    def num_encoders(self) -> int:
        """Two, if the value has an encoder, and a memory, of its own."""
        return 1

    @property
    def state_size(self) -> int:
        """Numbers in the recurrent state of an environment."""
        return self.num_encoders * self.memory.state_size if self.memory else 0

    @property
    def memory(self) -> MemorySpec | None:
        """None: there is none."""
        return None if self.rnn == "none" else MemorySpec(self.rnn, self.rnn_size, self.rnn_layers)

    def problems(self) -> list[str]:
        problems = super().problems()
        if any(problem.startswith("rnn_size=") for problem in problems):
            return problems
        if self.rnn == "none" and self.rnn_size > 0:
            problems.append(
                f"rnn_size={self.rnn_size} must be 0 with rnn=none, which is no memory; try rnn=gru"
            )
        if self.rnn == "none" and self.rnn_layers > 1:
            problems.append(
                f"rnn_layers={self.rnn_layers} must be 1 with rnn=none, which is no memory; "
                f"try rnn=gru"
            )
        if self.rnn != "none" and self.rnn_size == 0:
            problems.append(f"rnn_size=0 must be at least 1 with rnn={self.rnn}; try rnn_size=128")
        return problems
