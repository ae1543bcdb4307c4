from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from sfrl import envs
from sfrl.settings.fields import (
    USUAL,
    Count,
    Settings,
    Share,
    at_least,
    at_most,
    settings_of,
    shown,
)

# The fields of `EnvOptions` that settings have by another name.
_SETTINGS = {"bounds": "action_bounds", "kwargs": "env_kwargs", "threads": "threads_per_worker"}


def env_options(values: Mapping[str, Any]) -> envs.EnvOptions:
    """What settings by name say of how environments are made; the rest may be anything.

    Raises:
        ValueError: `env_kwargs` breaks its rule.
    """
    names = {field.name: _SETTINGS.get(field.name, field.name) for field in fields(envs.EnvOptions)}
    options = {option: values[name] for option, name in names.items() if name in values}
    if "kwargs" in options:
        options["kwargs"] = envs.parse_kwargs(options["kwargs"])
    return envs.EnvOptions(**options)


_READ: dict[str, Callable[[str], object]] = {
    "env_kwargs": envs.parse_kwargs,
    "wrappers": envs.parse_wrappers,
}


def meaning(name: str, value: object) -> object:
    """A setting's value, hashable and the same for texts that mean the same: `{"a":1}`, `{"a": 1}`.

    Texts that break their rule are themselves.
    """
    if name not in _READ or not isinstance(value, str):
        return value
    try:
        return json.dumps(_READ[name](value), sort_keys=True)
    except (ValueError, RecursionError):
        return value


def option_problems(given: Mapping[str, Any]) -> list[str]:
    """What keeps `given`, whose types are right, from being options of an environment."""
    own = {name: given[name] for name in settings_of(EnvironmentSettings) if name in given}
    return EnvironmentSettings(**own).problems()


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings(Settings):
    """The environment."""

    frameskip: Annotated[Count, at_most(1000)] = 4
    """Frames emulated per decision (Atari only)."""
    sticky_actions: Share = 0.0
    """Probability that a frame repeats the previous action (Atari only); 0.25 is ALE's v5."""
    episodic_life: bool = False
    """Let a lost life end the episode, but not the game whose score counts (Atari only)."""
    env_kwargs: Annotated[str, USUAL] = ""
    """A JSON object of arguments for the environment, such as {"continuous": true}."""
    wrappers: Annotated[str, USUAL] = ""
    """Wrappers around the environment, the first one innermost: names of gymnasium.wrappers or
    module:Class, separated by ; and each with a JSON object of arguments or none, such as
    FilterObservation{"filter_keys":["image"]}."""
    image_size: Annotated[int, at_least(0), at_most(10_000)] = 96
    """Pixels in the longest side of images: larger ones are made smaller, by means of areas (Atari
    has 84x84). 0 leaves all as they are."""
    frame_stack: Annotated[Count, at_most(64), USUAL] = 1
    """Observations that a network sees at once: the last one and those before it (Atari has 4)."""
    observe_last: bool = False
    """Let networks see the previous action and reward as well, for those with a memory."""
    action_bounds: Literal["clip", "tanh"] = "clip"
    """How numbers that the policy draws become those of a Box: -1 and 1 are its bounds, and what is
    beyond is clipped; or a tanh leads there. Without bounds they stay as drawn; with one alone, 0
    lies within it."""
    max_episode_frames: Count = 108_000
    """Truncate an episode after this many frames (Atari only). 108000 is 30 minutes of play."""

    def problems(self) -> list[str]:
        problems = super().problems()
        for name, parse in _READ.items():
            text = getattr(self, name)
            try:
                parse(text)
            except (ValueError, RecursionError) as error:
                problems.append(f"{name}={shown(text):.200} {error}")
        return problems
