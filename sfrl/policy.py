"""A trained network that acts: `sfrl.load`, and `Policy`, by which all act that do not train."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Space
from numpy.typing import ArrayLike
from torch import Tensor

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.envs.logs import own_logger
from sfrl.envs.vec_env import Actions
from sfrl.nets.model import check_memory
from sfrl.records import checkpoint, run_folder
from sfrl.settings.algorithms import config_from
from sfrl.settings.config import Config
from sfrl.settings.defaults import caveats

log = own_logger(__name__)


class PolicyState(NamedTuple):
    """What a policy remembers of N episodes between two decisions. For `Policy.act` alone."""

    memory: Tensor | None  # [N, H]; None without a memory
    frames: envs.Observations  # leaf -> [N, frame_stack, *shape]; empty without a stack
    actions: Actions  # [N, *ActionSpec.shape], the policy's last ones


def load(
    run_dir: str | os.PathLike[str] = "",
    checkpoint: str | os.PathLike[str] = "latest",
    *,
    seed: int | None = None,
) -> Policy:
    """What a run has learned, ready to act.

        policy = sfrl.load("runs/CartPole-v1-20260101-120000")
        env = policy.make_env()
        obs, _ = env.reset()
        action, state = policy.act(obs)

    It makes the environment once, to see its spaces.

    Args:
        run_dir: the run's folder; "": the newest one in runs/.
        checkpoint: latest, best, or the path of a checkpoint, which may be of any run.
        seed: of the draws, where actions are drawn; None: others each time.

    Raises:
        ValueError: the folder or the settings in the checkpoint are none; the environment cannot be
            made, or the weights do not fit it.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    state, path = find_checkpoint(os.fspath(run_dir), os.fspath(checkpoint))
    # The settings in the checkpoint, not those in the run's config.json: a resumed run may have
    # changed these since, and a checkpoint can be played wherever it was moved.
    return Policy(config_from(state["config"], str(path)), state["model"], seed=seed)


def find_checkpoint(run_dir: str, which: str) -> checkpoint.Checkpoint:
    """As `load` finds it. Raises ValueError and CheckpointError."""
    is_path = which not in ("latest", "best")
    run_dir = run_folder.expanded("run_dir", run_dir)
    run_dir = run_dir or ("" if is_path else str(checkpoint.newest_run()))
    if run_dir:
        if not Path(run_dir).is_dir():
            raise ValueError(
                f"run_dir={run_dir} is no folder; leave it out for the newest in runs/"
            )
        run_folder.check(Path(run_dir))
    return checkpoint.find(run_dir, run_folder.expanded("checkpoint", which))


class Policy:
    """Acts with the weights of a checkpoint, in float32 on the CPU.

    Attributes:
        config: the settings of the run that trained the weights.
        spec: the environment as networks see it.
        algorithm, model: what acts; the model is the copy that acts in training.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, Tensor],  # a checkpoint's "model"
        *,
        seed: int | None = None,  # of `act`
    ) -> None:
        """Raises ValueError if the environment cannot be made, or the weights do not fit it."""
        misfit = (
            f"the weights do not fit model={config.model} for {config.env}; play them with the "
            f"code of the environment and the model that they were trained with."
        )
        try:
            check_memory(weights, config.memory)
        except ValueError as error:
            raise ValueError(f"{misfit} {checkpoint.in_one_line(error)}") from error
        self.spec = envs.describe(config.env, config.env_options)
        for text in caveats(config.env, self.spec):
            log.warning("%s", text)
        self.algorithm = make_algorithm(config, self.spec)
        model = self.algorithm.make_model()
        try:
            model.load_weights(weights)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{misfit} {checkpoint.in_one_line(error)}") from error
        self.config = config
        self.model = model.inference_copy(torch.float32)
        self._exploration: Tensor | None = None
        if (exploration := config.exploration(config.max_frames)) is not None:
            self._exploration = torch.tensor([exploration.min()])  # as little as any did in the end
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def decide(
        self,
        obs: envs.Observations,  # leaf -> [N, *shape]
        memory: Tensor | None = None,  # [N, H]; None: episodes begin
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Actions, Tensor | None]:
        """Actions [N, *ActionSpec.shape] as a `VecEnv` takes them, and the memory after `obs`.

        Args:
            deterministic: take the likeliest action, or that of the highest value.
            generator: to draw from; None: the policy's own.
        """
        leaves = {name: torch.from_numpy(leaf) for name, leaf in obs.items()}
        seen = self.model, leaves, memory
        with torch.inference_mode():
            if deterministic:
                acted = self.algorithm.greedy(*seen)
            else:
                exploration = self._exploration
                if exploration is not None:
                    exploration = exploration.expand(len(next(iter(obs.values()))))
                acted = self.algorithm.act(*seen, exploration, generator or self._generator)
        actions: Actions = acted.fields["actions"].numpy()
        return actions, acted.rnn_state

    def outputs(self, obs: envs.Observations, memory: Tensor | None = None) -> dict[str, Tensor]:
        """All that the network says of what `decide` is given: see `Algorithm.outputs`."""
        leaves = {name: torch.from_numpy(leaf) for name, leaf in obs.items()}
        if memory is not None:  # beside the network's own state it may have the actions' noise
            size = self.model.state_size
            memory = memory[:, :size] if size else None
        with torch.inference_mode():
            return self.algorithm.outputs(self.model, leaves, memory)[0]

    def act(
        self,
        obs: Any,
        state: PolicyState | None = None,
        *,
        deterministic: bool = False,
        episode_start: ArrayLike | None = None,
        reward: ArrayLike | None = None,
        action_mask: Any = None,
    ) -> tuple[Any, PolicyState]:
        """The environment's own action for what it shows now, and the state for the next one.

        Args:
            obs: as the environment gives it (`make_env`), or as a vector of N does. Which of both
                it is shows in its shape.
            state: what the call before has returned; None where all episodes begin.
            deterministic: take the likeliest action, or that of the highest value. Else actions are
                drawn, as in training.
            episode_start: [N] bool, in which environments of a vector an episode begins with this
                observation. None: nowhere, but everywhere with state=None.
            reward: [N], of the step before; needed if the network was trained with observe_last.
            action_mask: [N] masks, where the environment has them, and not in its observation.

        Returns:
            An action that `env.step` takes, of a batch N of them, as the action space of a vector
            has them.

        Raises:
            ValueError: something is missing, or does not fit; the text says what.
        """
        begins = None if episode_start is None else np.atleast_1d(np.asarray(episode_start, bool))
        memory, frames, last = state or (None, None, None)
        seen = self.translation.see(obs, frames, last, begins, reward, action_mask)
        if memory is not None and begins is not None:
            memory = memory.masked_fill(torch.tensor(begins)[:, None], 0)  # even if it is NaN
        actions, memory = self.decide(seen.obs, memory, deterministic=deterministic)
        own = self.translation.own(actions, is_single=seen.is_single)
        return own, PolicyState(memory, seen.frames, actions)

    def make_env(self, **kwargs: Any) -> Any:
        """The environment of the training, as `act` knows it; it is to be closed.

        A `gymnasium.Env` with the wrappers of the run. An Atari game shows stacks of four pictures
        of 84x84, and ends with the game. Of an id that is a vector alone: a vector of one.

        Args:
            kwargs: more arguments for the environment, such as render_mode="human".
        """
        return envs.make_env(self.config.env, playing_options(self.config), **kwargs)

    @property
    def observation_space(self) -> Space[Any]:
        """Of one observation."""
        return self.translation.spaces.observation

    @property
    def action_space(self) -> Space[Any]:
        """Of one action."""
        return self.translation.spaces.action

    @cached_property
    def translation(self) -> envs.Translation:
        """Between the environment and the network."""
        return envs.translation(self.config.env, playing_options(self.config), self.spec)


def playing_options(config: Config) -> envs.EnvOptions:
    """As in training, except that a lost life does not end the episode."""
    return dataclasses.replace(
        config.env_options, episodic_life=False, on_nan=envs.EnvOptions.on_nan, threads=1
    )
