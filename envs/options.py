"""How an environment is made, in one record, and the texts in which users write parts of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sfrl.envs.vec_env import Bounds, OnNan

_OWN = ("id", "disable_env_checker")  # arguments of gymnasium.make that are sfrl's
_NAME = re.compile(r"\s*([\w.]+(?::[\w.]+)?)\s*")


@dataclass(frozen=True)
class EnvOptions:
    """What decides how an environment is made. `settings/` has a flag for each."""

    frameskip: int | None = None  # Atari; None: 4
    sticky_actions: float = 0.0  # Atari
    episodic_life: bool = False  # Atari
    max_episode_frames: int = 108_000  # Atari: 30 minutes of play
    bounds: Bounds = "clip"  # how numbers of the policy's become actions (`ActionSpec`)
    on_nan: OnNan = "skip"  # NaN and infinity; "skip" cuts the episode off before
    kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make
    wrappers: str = ""  # as `parse_wrappers` reads it
    image_size: int = 96  # pixels in a side, at most: larger images are reduced; 0: any
    frame_stack: int = 1  # observations in one
    observe_last: bool = False  # the last action and reward as well
    threads: int = 1  # in which environments of a process step at the same time


DEFAULT_OPTIONS = EnvOptions()


class Wrapper(NamedTuple):
    name: str  # a class of gymnasium.wrappers, or module:Class
    kwargs: dict[str, Any]  # without lists: Gymnasium's want tuples


def parse_kwargs(text: str) -> dict[str, Any]:
    """What --env-kwargs says; "" is nothing. Raises ValueError: the rule that it breaks."""
    if not text.strip():
        return {}
    rule = 'must be a JSON object, such as {"continuous": true}'
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{rule}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{rule}, and is a {type(values).__name__}")
    if own := [name for name in _OWN if name in values]:
        raise ValueError(f"must not have {own[0]!r}, which sfrl sets itself; leave it out")
    return values


def parse_wrappers(text: str) -> list[Wrapper]:
    """What --wrappers says, the innermost first. Raises ValueError: the rule that it breaks."""
    wrappers: list[Wrapper] = []
    place, decoder = 0, json.JSONDecoder()
    while text[place:].strip():
        match = _NAME.match(text, place)
        if match is None:
            raise ValueError(
                "must be names of gymnasium.wrappers or module:Class, separated by ';', each with "
                f"a JSON object of arguments or none, and has {text[place : place + 40]!r}"
            )
        name, place = match[1], match.end()
        kwargs: dict[str, Any] = {}
        if text[place : place + 1] == "{":
            try:
                kwargs, place = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"must have a whole JSON object after {name}, such as "
                    f'FilterObservation{{"filter_keys": ["image"]}}: {error}'
                ) from error
        wrappers.append(Wrapper(name, _without_lists(kwargs)))
        rest = text[place:].lstrip()
        if rest and rest[0] != ";":
            raise ValueError(f"must have ';' after {name}, and has {rest[:40]!r}")
        place = len(text) - len(rest) + 1
    return wrappers


def _without_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_lists(item) for name, item in value.items()}
    return tuple(map(_without_lists, value)) if isinstance(value, list) else value
