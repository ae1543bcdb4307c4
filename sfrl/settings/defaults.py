"""The settings that learn, by kind of environment and size of the machine."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from sfrl import envs
from sfrl.nets.choose import CNN_SIZES, MODELS, encoder_of, seen, usual_encoder
from sfrl.settings.algorithms import class_of, make_config, recurrence_of
from sfrl.settings.config import MAX_INDEX, Config, ConfigError
from sfrl.settings.fields import nearest_multiple
from sfrl.settings.machine import available_cores
from sfrl.settings.replay import ReplayConfig
from sfrl.systems import DEFAULT_SYSTEM, SYSTEMS
from sfrl.systems.system import System

_MIN_BUNDLES = 4
ENVS_IN_BATCH = 32
_ROUND = ("num_workers", "envs_per_worker", "rollout_length")
_SIZES = ("num_workers", "num_splits", "envs_per_worker", "rollout_length")


def defaults_for(
    env: str, given: Mapping[str, Any] | None = None, spec: envs.EnvSpec | None = None
) -> Config:
    """The settings that learn in this kind of environment, sized for this machine.

    Args:
        given: what the user has set, whose types are right: the system is the user's, and so are
            numbers of workers, splits and environments and the rollout length, from which the
            training batch follows. Of others the algorithm may say that they change its defaults.
        spec: of `env`, where it is known; None: it is made once, here.

    Raises:
        envs.UnknownEnvError: there is no such game or id; the text names the nearest known ones.
    """
    given = given or {}
    system = SYSTEMS[given.get("system", DEFAULT_SYSTEM)]
    fixed = {name: setting.value for name, setting in system.fixed.items()}
    given = {**given, **fixed}
    cores = available_cores()
    spec = spec or envs.describe(env)
    memory = recurrence_of(system.name, given)
    values: dict[str, Any] = {"env": env, "system": system.name, **memory}
    num_workers = cores if cores <= 4 else cores - 1
    if spec.kind == "atari":
        values["episodic_life"] = given.get("preset") != "classic"
    else:
        num_workers = 1
        values |= {
            "frameskip": spec.frameskip,
            "reward_clip": "none",
            "train_frames": 1_000_000,
            "checkpoint_seconds": 60.0,
        }
    cls = class_of(system.name)
    systems_own = {**system.defaults, **fixed}
    own: dict[str, Any] = {**values, **cls.defaults_in(spec, given), **systems_own}
    if system.layout == "bundles":  # that they differ takes a memory's place, on few cores as well
        num_workers = max(cores, _MIN_BUNDLES)
    own["num_workers"] = max(given.get("num_workers", num_workers), 1)
    usual_envs = own.get("envs_per_worker", cls.envs_per_worker)
    is_fifo = not issubclass(cls, ReplayConfig)
    if is_fifo and system.layout == "separate" and not system.is_synchronous:
        # Environments beyond those of a training batch cost frames: of more workers each has fewer.
        most = max(2, 2 * max(ENVS_IN_BATCH, usual_envs) // own["num_workers"])
        own["envs_per_worker"] = min(usual_envs, 1 << (most.bit_length() - 1))
    if "num_splits" not in systems_own:
        # With more processes than cores another one fills a worker's wait, and inference batches of
        # a whole worker's environments are cheaper than of its halves.
        num_splits = 1 if cores <= 4 else 2
        if given.get("threads_per_worker", 1) > 1:
            num_splits = 4  # a split waits for its slowest environment, and the others go on
        num_envs = given.get("envs_per_worker", own.get("envs_per_worker", cls.envs_per_worker))
        own["num_splits"] = math.gcd(num_splits, max(num_envs, 1))  # an odd number has one split
    if is_fifo:
        own |= _batches(cls, own, given, usual_envs)
    return make_config(own)


def _batches(
    cls: type[Config], own: Mapping[str, Any], given: Mapping[str, Any], least_envs: int
) -> dict[str, int]:
    """The training batch, room for two of them, and the numbers in `given` that these follow from.

    Args:
        own: what stands where nothing is given.
        given: what stands before that.
        least_envs: as `training_batch` has it.
    """

    def value_of(name: str) -> int:
        return int(max(1, given.get(name, own.get(name, getattr(cls, name)))))

    system = SYSTEMS[own["system"]]
    sizes = {name: value_of(name) for name in _SIZES}
    batch = training_batch(
        system,
        **sizes,
        step=value_of("batch_size"),
        least_envs=least_envs,
        minibatches=value_of("minibatches") if "minibatches" in given else 0,
    )
    follows = {name: sizes[name] for name in _SIZES if name in given} | batch
    if "slots_per_split" not in system.fixed:
        rows = max(given.get("batch_size", batch["batch_size"]), 1) * batch["minibatches"]
        learners = sizes["num_workers"] if system.layout == "bundles" else 1
        per_round = math.prod(sizes[name] for name in _ROUND) // learners
        follows["slots_per_split"] = cls.slots_per_split * max(1, -(-rows // per_round))
    return follows


def training_batch(
    system: System,
    *,
    num_workers: int,
    num_splits: int,
    envs_per_worker: int,
    rollout_length: int,
    step: int,
    least_envs: int,
    minibatches: int = 0,
) -> dict[str, int]:
    """The batch_size and minibatches that learn best, whatever the number of environments.

    A training batch has the slots of 32 environments, or of all if they are fewer; if slots are
    short it has several of each, for one optimizer step. A larger one would leave fewer steps for
    as many decisions, one of fewer environments is too much alike (docs/experiments.md, "The same
    curve on any number of cores").

    Args:
        step: decisions of an optimizer step, at least.
        least_envs: environments of a training batch, where that is more than 32.
        minibatches: how many; 0: as `step` says.
    """
    envs_per_split = max(1, envs_per_worker // num_splits)
    slots = num_splits if system.layout == "bundles" else num_splits * num_workers
    if not system.is_synchronous and system.layout != "bundles":
        slots = min(slots, -(-max(ENVS_IN_BATCH, least_envs) // envs_per_split))
        slots = max(slots, -(-step // (envs_per_split * rollout_length)))
    trajectories = slots * envs_per_split
    if not minibatches:
        most = max(1, min(trajectories, MAX_INDEX, trajectories * rollout_length // step))
        minibatches = next(n for n in range(most, 0, -1) if trajectories % n == 0)
    unit = rollout_length * envs_per_split // math.gcd(minibatches, envs_per_split)
    batch_size = nearest_multiple(trajectories * rollout_length // minibatches, unit)
    return {"batch_size": batch_size, "minibatches": minibatches}


def resolve(config: Config, spec: envs.EnvSpec) -> Config:
    """`config` with `model=auto` replaced by the model for this environment.

    Raises:
        ConfigError: a setting does not fit the environment: the model, or one that does nothing.
    """
    leaves = seen(spec.leaves)
    is_image = spec.kind != "vector"
    shapes = ", ".join(f"{leaf.name} {leaf.shape}" for leaf in leaves)
    model = config.model
    if model == "auto":
        model = usual_model(config, spec)
    problems = _device_problems(config)
    if spec.kind != "atari" and config.frameskip != spec.frameskip:
        problems.append(
            f"frameskip={config.frameskip} is for Atari games, and {config.env} is none; leave it "
            f"out"
        )
    problems += config.problems_in(spec)
    has_weights = model != "flat" or len(leaves) > 1 or leaves[0].kind == "choice"
    if config.optimizer == "muon" and not (has_weights or config.resume):
        problems.append(
            "optimizer=muon is for an encoder's weights, and model=flat has none; use adam"
        )
    if ":" in model:
        problems += _encoder_problems(dataclasses.replace(config, model=model), spec)
    elif model not in MODELS:
        nearest = difflib.get_close_matches(model, MODELS) or MODELS
        problems.append(
            f"model={model} is unknown; did you mean {' or '.join(nearest)}? "
            f"Your own encoder is named as module:Class"
        )
    elif model in CNN_SIZES and not any(encoder_of(model, leaf) == model for leaf in leaves):
        side = CNN_SIZES[model]
        least = f" of at least {side}x{side}" if side > 1 else ""
        problems.append(
            f"model={model} needs images{least}, and {config.env} has observations of shape "
            f"{shapes}; use {'impala_resnet or ' if is_image else ''}norm_mlp"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    return dataclasses.replace(config, model=model)


def usual_model(config: Config, spec: envs.EnvSpec) -> str:
    """What `model=auto` means in this environment."""
    if spec.kind == "atari" and config.optimizer == "muon":
        return "pooled_cnn"  # tried together; VizDoom, with Adam, learns less of a frame with it
    usual = {usual_encoder(leaf) for leaf in seen(spec.leaves)}
    return next(name for name in ("nature_cnn", "small_cnn", "norm_mlp") if name in usual)


def _encoder_problems(config: Config, spec: envs.EnvSpec) -> list[str]:
    """Tries the user's encoder, and imports torch for it: only where --model names one."""
    name = config.model
    if name.startswith("__main__:") and not config.serial:
        return [
            f"model={name} is defined in this program alone, which workers, processes of their "
            f"own, do not run; put it into a module, and name it as module{name[8:]}"
        ]
    import torch

    from sfrl.nets.model import try_model

    precisions: tuple[str, ...] = (config.precision,)
    if config.precision == "auto":  # vectors stay in float32 then
        precisions = ("float32", "bfloat16") if spec.has_pixels else ("float32",)
    try:
        with torch.random.fork_rng(devices=()):  # the caller's, of `sfrl.train`
            try_model(
                name,
                spec.leaves,
                precisions,
                num_encoders=config.num_encoders,
                normalize_obs=config.normalize_obs,
                memory=config.memory,
            )
    except ValueError as error:
        return [str(error)]
    return []


def _device_problems(config: Config) -> list[str]:
    flags = {"device": [config.device], "policy_devices": config.policy_devices.split(",")}
    named = [(flag, name) for flag, names in flags.items() for name in names if "cuda" in name]
    if not named:
        return []
    import torch  # 2 s, which a trainer without these flags is spared

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        f"{flag}={name} needs a GPU that PyTorch can use, and there "
        f"{'is none' if count == 0 else f'are {count}, from cuda:0 on'}; use "
        f"{'device=auto' if flag == 'device' else 'another, or leave it out'}"
        for flag, name in named
        if int(name.partition(":")[2] or 0) >= count
    ]


def caveats(env: str, spec: envs.EnvSpec) -> list[str]:
    """What a user should know before the environment is trained, or played, as it is."""
    texts = [spec.reading] if spec.reading else []
    if spec.statistics:
        texts.append(
            f"{env}: the statistics of {' and '.join(spec.statistics)} are neither shared nor "
            f"saved: each copy of the environment gathers its own, and loses them with --resume "
            f"and in enjoy.py, where scores will differ. Use RescaleObservation or "
            f"TransformObservation of gymnasium.wrappers with fixed numbers, and for rewards "
            f"--normalize-returns"
        )
    return texts
