from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.nets.choose import usual_encoder
from sfrl.settings.config import Config, RowField
from sfrl.settings.fields import USUAL, NotNegative, Positive, Share, linear_size

_NOISE_SHARE = 0.2  # of the run's frames, over which correlations fall to 0
_NOISE_FRAMES = 200_000  # where the run has no end
# Of bodies with several joints: more decisions in a batch, and more passes in smaller steps than
# elsewhere (docs/experiments.md, "Several numbers").
_BODIES = {
    "envs_per_worker": 64,
    "batch_size": 128,
    "epochs": 8,
    "learning_rate": 5e-4,
    "entropy_coef": 3e-3,
}

# Of the moving average, for each optimizer step (Hilton et al. 2021, arXiv:2110.00641).
_PROXIMAL_DECAY = 0.889
# Choices by vectors: a look farther ahead, for which more must be tried (docs/experiments.md).
_VECTORS = {"gamma": 0.995, "entropy_coef": 0.02}
# What it was tried with, and takes fewer frames to a score (docs/experiments.md, "Muon").
_MUON_TRIED = {
    "model": ("auto", "nature_cnn", "pooled_cnn"),
    "rnn": ("none",),
    "value_encoder": ("shared",),
    "correction": ("vtrace",),
}


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(Config):
    """A policy with a critic (--system=appo, impala, seed, a2c-sync, a3c, hogwild)."""

    ALGORITHM = "actor_critic"
    STATISTICS = (
        "policy_loss",
        "value_loss",
        "entropy",
        "rho_clipped_fraction",
        "rho_variance",
        "effective_sample_size",
        "ppo_clipped_fraction",
        "approx_kl",
        "explained_variance",
    )

    SHOWN = ("policy_loss", "value_loss", "entropy", "rho_clipped_fraction")
    HEADLINE = "entropy"
    FIXED_ON_RESUME = (*Config.FIXED_ON_RESUME, "value_encoder", "normalize_returns")
    COSTS = (*Config.COSTS, "loss", "correction", "value_encoder", "normalize_returns")

    system: str = "appo"
    loss: Literal["appo", "vtrace"] = "appo"
    """appo: PPO's clipped ratio with V-trace advantages. vtrace: IMPALA's policy gradient."""
    correction: Literal[
        "vtrace", "decoupled", "impact", "filter", "one-step", "epsilon", "none"
    ] = "vtrace"
    """What is made of older policies' rows. vtrace: importance weights in the returns, and in the
    gradient of --loss=vtrace. Others are there to compare. decoupled and impact have V-trace, too,
    and --loss=appo's clip around a policy between the one that acted and the present one: a moving
    average (decoupled), or a copy that is renewed once a round (impact). filter has V-trace and no
    clip: rows that pull the policy away from the one that acted are left out of a minibatch whose
    total variation between the two is above half --ppo-clip. The rest have no weights in the
    returns: one-step, in the gradient alone; epsilon, none, but probabilities below 1e-6 count as
    that; none."""
    trace_lambda: Share = 0.95
    """V-trace's lambda: 1 trusts the returns, lower values trust the critic."""
    rho_clip: NotNegative = 1.0
    """V-trace's rho-bar: which policy the values converge to."""
    c_clip: NotNegative = 1.0
    """V-trace's c-bar: how far corrections travel back. At most rho_clip."""
    ppo_clip: Positive = 0.1
    """Ratio beyond which --loss=appo stops pushing."""
    entropy_coef: Annotated[NotNegative, USUAL] = 0.01
    """Weight of the entropy bonus. With --normalize-returns down to a tenth of it while advantages
    are next to nothing: alone it would undo what a rare reward has taught."""
    value_coef: NotNegative = 0.5
    """Weight of the value loss, which is half the mean squared error."""
    noise_correlation: Share = 0.0
    """How much the noise of an action's numbers resembles that of the action before (an AR(1)
    process), at first: it falls to 0 over a fifth of the run. Pushing in one direction for a while
    gets further than trembling, and finds rewards that are far away."""
    normalize_advantages: bool = True
    """Advantages of a minibatch get mean 0 and deviation 1."""
    normalize_returns: bool = False
    """Learn values in units of the returns' running size, their root mean square."""
    value_encoder: Literal["shared", "separate"] = "shared"
    """separate: policy and value have an encoder each (and a memory each, with --rnn). Vectors and
    small images have it by default, where it costs little and learns more surely."""
    value_lr_factor: Positive = 3.0
    """Learning rate of a separate value network (--value-encoder=separate), in multiples of the
    policy's."""

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        values: dict[str, object] = {}
        if spec.kind != "atari":
            values = {
                "epochs": 4,
                "ppo_clip": 0.2,
                # One encoder for both lets the critic's errors move the policy, into traps that two
                # avoid; of vectors and small images the second costs little (docs/experiments.md).
                "value_encoder": "shared" if _has_large_images(spec) else "separate",
                "normalize_returns": True,  # rewards come in all sizes here
            }
        elif given.get("loss", "appo") == "appo":
            was_tried = all(given.get(name, of[0]) in of for name, of in _MUON_TRIED.items())
            is_new = was_tried and given.get("preset") != "classic"
            if given.get("optimizer", "muon" if is_new else "adam") == "muon":
                values = {"optimizer": "muon", "lr_schedule": "root", "epochs": 1}
                if given.get("epochs", 1) == 1:  # half as many steps, and twice as far
                    values["learning_rate"] = 2e-3
        if spec.kind == "vector" and not spec.actions.low:
            values |= _VECTORS
        if spec.actions.low:  # numbers come with states of all units
            values["normalize_obs"] = any(leaf.kind == "vector" for leaf in spec.leaves)
            if spec.actions.num_numbers == 1:
                # Noise that is new at each step explores little. With several numbers correlated
                # noise has done harm.
                values["noise_correlation"] = 0.9
            else:
                values |= _BODIES if spec.kind == "vector" else {"learning_rate": 3e-4}
        if given.get("loss") == "vtrace":
            # Unlike PPO's ratio it has no clip that ends the pull of rows used before: with 4
            # epochs CartPole is learned more slowly than with 2, and Pong needs a lower rate as
            # well (docs/experiments.md).
            values |= {"loss": "vtrace", "epochs": 2, "ppo_clip": cls.ppo_clip}
            if spec.kind == "atari":
                values["learning_rate"] = 3e-4
        return values

    @classmethod
    def acted(cls, spec: envs.EnvSpec) -> dict[str, RowField]:
        log_probs = RowField("float32")  # of the action under the policy that took it
        return super().acted(spec) | {"log_probs": log_probs}

    def exploration(self, env_frames: float) -> NDArray[np.float32] | None:
        """The correlations of their noise; None if there is none."""
        if not self.noise_correlation:
            return None
        frames = _NOISE_SHARE * self.train_frames or _NOISE_FRAMES
        correlation = self.noise_correlation * max(0.0, 1 - env_frames / frames)
        return np.full((self.splits, self.envs_per_split), correlation, np.float32)

    def num_noises(self, spec: envs.EnvSpec) -> int:
        """Of an environment, that acting has to remember."""
        return spec.actions.num_numbers if self.noise_correlation else 0

    def acting_state_size(self, spec: envs.EnvSpec) -> int:
        return super().acting_state_size(spec) + self.num_noises(spec)

    def head_size(self, num_features: int, actions: envs.ActionSpec) -> int:
        normalizer = 2 if self.normalize_returns else 0
        value = linear_size(num_features, 1) + normalizer
        means = linear_size(num_features, actions.num_numbers) + actions.num_numbers  # deviations
        return super().head_size(num_features, actions) + means + value

    @property
    def target_period(self) -> int:
        if self.correction == "decoupled":
            return 1
        return self.updates_per_round if self.correction == "impact" else 0

    @property
    def target_decay(self) -> float:
        return _PROXIMAL_DECAY if self.correction == "decoupled" else 0.0

    @property
    def num_encoders(self) -> int:
        return 2 if self.value_encoder == "separate" else 1

    @property
    def rate_factors(self) -> tuple[float, ...]:
        """The second one is of a separate value network."""
        return (1.0, self.value_lr_factor)[: self.num_encoders]

    def unused_in(self, spec: envs.EnvSpec) -> dict[str, str]:
        unused = super().unused_in(spec)
        if not spec.actions.low:
            unused["noise_correlation"] = f"is for a Box of actions, and {self.env} has none"
        if self.value_encoder == "shared":
            unused["value_lr_factor"] = "is for value_encoder=separate, and it is shared"
        if self.loss == "vtrace":
            unused["ppo_clip"] = "is for loss=appo, and it is vtrace"
        return unused

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.loss == "appo" and self.correction in ("one-step", "epsilon"):
            problems.append(
                f"correction={self.correction} must be vtrace or none with loss=appo, whose ratio "
                f"weighs the gradient already; try loss=vtrace"
            )
        if self.correction in ("decoupled", "impact", "filter"):
            if self.loss != "appo":
                problems.append(
                    f"correction={self.correction} must be with loss=appo, whose clip it changes; "
                    f"try correction=vtrace"
                )
            if self.rnn != "none" and self.correction != "filter":
                problems.append(
                    f"correction={self.correction} must be with rnn=none, since the states "
                    f"of a memory belong to one policy; try correction=vtrace"
                )
        if self.c_clip > self.rho_clip:
            problems.append(
                f"c_clip={self.c_clip} must not exceed rho_clip={self.rho_clip} "
                f"(IMPALA, section 4.1); try c_clip={self.rho_clip}"
            )
        return problems


def _has_large_images(spec: envs.EnvSpec) -> bool:
    return any(usual_encoder(leaf) == "nature_cnn" for leaf in spec.leaves)
