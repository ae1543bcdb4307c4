"""What a learner does with weights, whoever owns them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sfrl.nets.model import Network

# Changes a model in place after a step, told whether the step was applied.
Edit = Callable[[Network, Tensor], None]


class Step(NamedTuple):
    """The outcome of an optimizer step, on the device."""

    applied: Tensor  # scalar bool; False: loss or gradient was not finite, nothing has changed
    grad_norm: Tensor  # scalar, of all networks together, before it was clipped


class Parameters(Protocol):
    """The weights of one learner's model, and how they change: `CentralParameters` are its own,
    `SharedParameters` those of several."""

    @property
    def target(self) -> nn.Module | None:
        """An earlier state of the weights, renewed every `config.target_period` steps, or None."""

    def pull(self) -> None:
        """Make the model's weights the newest there are."""

    def step(
        self,
        loss: Tensor,
        after_update: Edit,
        reach: Tensor | None = None,
        has_rows: Tensor | bool = True,
    ) -> Step:
        """One optimizer step down the gradient of `loss`, unless one of them is not finite.

        Args:
            after_update: edits the model whose weights have changed in place, told whether they
                have.
            reach: scalar, 0 to 1, multiplies Muon's steps of the matrices, which do not get shorter
                as the gradient gets smaller. None: 1. Other optimizers do without it.
            has_rows: scalar bool, whether the loss is of any row. Without one nothing is learned:
                a step would follow the optimizer's momentum alone, and none is made.
        """

    def drop_gradients(self) -> None: ...

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the steps to come, those of a graph captured before included."""

    def publish(self, version: int) -> None:
        """Make the present weights those that everybody acts with, and the target's if it is due.

        Args:
            version: optimizer steps applied so far.
        """

    def state(self) -> dict[str, Any]:
        """For a checkpoint. Normalization statistics are buffers of the model."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises what `checkpoint.MISMATCHES` lists if it does not fit."""
