from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfrl.settings.fields import Settings, at_least


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """The model."""

    model: str = "auto"
    """a3c_cnn, nature_cnn, impala_resnet, mlp, norm_mlp, or your own encoder as module:Class.
    auto: nature_cnn for images of 36x36 and more, norm_mlp otherwise."""
    rnn_size: Annotated[int, at_least(0)] = 0
    """Width of a GRU between encoder and heads. 0: none."""

    @property
    def num_encoders(self) -> int:
        """Two, if the value has an encoder, and a GRU, of its own."""
        return 1

    @property
    def state_size(self) -> int:
        """Numbers in the recurrent state of an environment."""
        return self.num_encoders * self.rnn_size
