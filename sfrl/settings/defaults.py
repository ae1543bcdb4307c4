"""The settings that learn, by kind of environment and size of the machine."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from sfrl import envs
from sfrl.nets.choose import CNN_SIZES, MODELS, encoder_of, seen, usual_encoder
from sfrl.settings.algorithms import class_of, make_config, memory_of
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.machine import available_cores
from sfrl.systems import DEFAULT_SYSTEM, SYSTEMS

_MIN_BUNDLES = 4
_ROUND = ("num_workers", "envs_per_worker", "rollout_length")


def defaults_for(
    env: str, given: Mapping[str, Any] | None = None, spec: envs.EnvSpec | None = None
) -> Config:
    """The settings that learn in this kind of environment, sized for this machine.

    Args:
        given: what the user has set, whose types are right: the system is the user's, the number
            of rollout workers, and of others the algorithm may say that they change its defaults.
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
    values: dict[str, Any] = {"env": env, "system": system.name, **memory_of(given)}
    num_workers = cores if cores <= 4 else cores - 1
    if spec.kind != "atari":
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
    has_bundles = system.layout == "bundles"
    if has_bundles:  # some, however few the cores are: that they differ takes a memory's place
        num_workers = max(cores, _MIN_BUNDLES)
    if system.is_synchronous or has_bundles:
        # A training batch has a whole round, of all or of one worker, however large that is.
        own |= {name: max(given[name], 1) for name in _ROUND if name in given}
    config = make_config(own)
    # A training batch is one round of all environments. Policy lag, counted in optimizer steps,
    # then depends on epochs * minibatches alone, however many workers there are.
    num_workers = max(given.get("num_workers", num_workers), 1)
    workers_in_round = 1 if has_bundles else num_workers
    round_size = workers_in_round * config.envs_per_worker * config.rollout_length
    is_fifo = config.replay is None
    batch_size = round_size // config.minibatches if is_fifo else config.batch_size

    def size_of(*names: str) -> int:
        of_config = {**vars(config), "batch_size": batch_size}
        return math.prod(max(1, given.get(name, of_config[name])) for name in names)

    # With more processes than cores another one fills a worker's wait, and inference batches of a
    # whole worker's environments are cheaper than of its halves.
    num_splits = 1 if cores <= 4 or "num_splits" in systems_own else 2
    if given.get("threads_per_worker", 1) > 1 and "num_splits" not in systems_own:
        # A split waits for its slowest environment, and the others go on.
        num_splits = math.gcd(4, size_of("envs_per_worker"))
    has_room = is_fifo and "slots_per_split" not in fixed
    rows = size_of("batch_size", "minibatches")
    per_round = workers_in_round * size_of("envs_per_worker", "rollout_length")
    return dataclasses.replace(
        config,
        num_workers=num_workers,
        num_splits=num_splits,
        batch_size=batch_size,
        # Room for two training batches, however small the rounds are that the user asks for.
        slots_per_split=config.slots_per_split * (-(-rows // per_round) if has_room else 1),
    )


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
        usual = {usual_encoder(leaf) for leaf in leaves}
        model = next(name for name in ("nature_cnn", "small_cnn", "norm_mlp") if name in usual)
    problems = _device_problems(config)
    if spec.kind != "atari" and config.frameskip != spec.frameskip:
        problems.append(
            f"frameskip={config.frameskip} is for Atari games, and {config.env} is none; leave it "
            f"out"
        )
    problems += config.problems_in(spec)
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


def _encoder_problems(config: Config, spec: envs.EnvSpec) -> list[str]:
    """Tries the user's encoder, and imports torch for it: only where --model names one."""
    name = config.model
    if name.startswith("__main__:") and not config.serial:
        return [
            f"model={name} is defined in this program alone, which workers, processes of their "
            f"own, do not run; put it into a module, and name it as module{name[8:]}"
        ]
    from sfrl.nets.model import try_model

    precisions: tuple[str, ...] = (config.precision,)
    if config.precision == "auto":  # vectors stay in float32 then
        precisions = ("float32", "bfloat16") if spec.has_pixels else ("float32",)
    try:
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
