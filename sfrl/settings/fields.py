"""The fields of a settings class: their types and rules, which stand beside each of them.

    num_workers: Annotated[int, at_least(1)] = 2
    \"\"\"Rollout workers, one process each.\"\"\"

The doc under a field is its help, the first line of the class's doc the heading of its section.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

_MAX_COUNT = 2**53  # of an int, which is to stay exact as a float
_FLOAT32 = (2.0**-126, 3.4e38)  # what becomes neither 0 nor infinity there

NOTE = "note"
"""Marks a field that config.json keeps and no user sets."""
USUAL = "usual"
"""Marks a field that many users set: --help has these, --help-all has all."""


DURATION = "duration"
"""Marks a number of seconds that may also be given as a text: 90s, 10m or 2h."""
_SECONDS_IN = {"s": 1, "m": 60, "h": 3600}


class Bare(NamedTuple):
    """What a flag means that is given without a value."""

    value: str


class Rule(NamedTuple):
    text: str
    holds: Callable[[float], bool]


def at_least(low: int) -> Rule:
    return Rule(f"must be at least {low}", lambda value: value >= low)


def at_most(high: float) -> Rule:
    return Rule(f"must be at most {high:,.0f}", lambda value: value <= high)


def above(low: int) -> Rule:
    return Rule(f"must be above {low}", lambda value: value > low)


def between(low: int, high: int) -> Rule:
    return Rule(f"must lie between {low} and {high}", lambda value: low <= value <= high)


Count = Annotated[int, at_least(1)]
Positive = Annotated[float, above(0)]
NotNegative = Annotated[float, at_least(0)]
Share = Annotated[float, between(0, 1)]
Seconds = Annotated[Positive, at_most(1e9)]  # 30 years
Duration = Annotated[NotNegative, at_most(1e9), DURATION]


def seconds(text: str) -> float:
    """Those that `text` means: 90, 90s, 1.5m or 2h.

    Raises:
        ValueError: it means none.
    """
    unit = _SECONDS_IN.get(text[-1:], 0)
    return float(text[:-1]) * unit if unit else float(text)


def shown(value: object) -> str:
    """A value as a line of text shows it: one with control characters, such as an end of the line,
    is quoted."""
    text = str(value)
    return text if text.isprintable() else repr(text)


class Setting(NamedTuple):
    """A field: what flags, arguments, files and --help have to know of it."""

    name: str
    type: type
    default: Any
    choices: tuple[str, ...]  # its only values; (): any
    rules: tuple[Rule, ...]
    is_note: bool  # see NOTE
    is_duration: bool  # see DURATION
    is_usual: bool  # see USUAL
    bare: str  # see Bare; "": it needs a value

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def problem(self, value: object) -> str | None:
        """What is wrong with a value of the right type."""
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.name}={value} must be a finite number"
        if self.choices and value not in self.choices:
            return f"{self.name}={shown(value):.200} must be one of {', '.join(self.choices)}"
        if not isinstance(value, int | float):
            return None
        for rule in self.rules:
            if not rule.holds(value):
                return f"{self.name}={value} {rule.text}"
        if isinstance(value, int) and value > _MAX_COUNT:
            return f"{self.name}={value!s:.40} must be at most 2^53={_MAX_COUNT}"
        if isinstance(value, float) and value and not _FLOAT32[0] <= abs(value) <= _FLOAT32[1]:
            low, high = _FLOAT32
            return f"{self.name}={value} must lie between {low:.3g} and {high:.3g} in size"
        return None


def _settings_of(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass, by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _setting(field, hints[field.name]) for field in dataclasses.fields(cls)}


# mypy takes no dataclass for hashable.
settings_of: Callable[[type], dict[str, Setting]] = cache(_settings_of)


def _setting(field: dataclasses.Field[Any], hint: Any) -> Setting:
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Setting(
        field.name,
        str if choices else kind,
        field.default,
        choices,
        tuple(extra for extra in extras if isinstance(extra, Rule)),
        is_note=NOTE in extras,
        is_duration=DURATION in extras,
        is_usual=USUAL in extras,
        bare=next((extra.value for extra in extras if isinstance(extra, Bare)), ""),
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every group of settings derives from."""

    def problems(self) -> list[str]:
        """Each problem in a line: value, rule, remedy. A group adds its rules of several fields."""
        found = (s.problem(getattr(self, s.name)) for s in settings_of(type(self)).values())
        return [problem for problem in found if problem]


def linear_size(inputs: int, outputs: int) -> int:
    """Numbers in a linear layer."""
    return (inputs + 1) * outputs


def nearest_multiple(value: int, unit: int) -> int:
    """The multiple of `unit` nearest to `value`, at least one `unit`."""
    return unit * max(1, round(value / unit))
