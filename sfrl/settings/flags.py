"""The flags of a command as users type them: what is wrong with them is told a line each."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sfrl import __version__
from sfrl.settings.config import ConfigError

T = TypeVar("T")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_WHOLE_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d*)?(?:e[+-]?\d\d?)?)([kmb]?)", re.ASCII | re.I)


def whole_number(text: str) -> int:
    """The number that `text` is, exactly: 4, 1_000_000, 1e6, 2.5e6, 500k, 10M or 1b.

    Raises:
        ValueError: it is none, such as 1.5 or 1e-3.
    """
    match = _WHOLE_NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no whole number")
    number = Fraction(match[1]) * _UNITS[match[2].lower()]
    if number.denominator != 1:
        raise ValueError(f"{text!r} is no whole number")
    return number.numerator


def _read_whole_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda args: whole_number(args[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


_registry = ConstructorRegistry()
_registry.primitive_rule(_read_whole_numbers)


def parse_flags(argv: Sequence[str], defaults: T, prog: str, description: str) -> T:
    """`defaults`, a dataclass, with the flags over them. `--help` prints and leaves."""
    return tyro.cli(
        type(defaults),
        args=list(argv),
        default=defaults,
        prog=prog,
        description=description,
        registry=_registry,
    )


def read_flags(
    argv: Sequence[str],
    defaults: Mapping[str, object],
    choices: Mapping[str, tuple[str, ...]],
    synonyms: Mapping[str, str],
) -> dict[str, str]:
    """The flags as typed, by the setting's name; a switch has the value "". `--version` leaves.

    tyro reads them for good. But it stops at the first problem, and it must be given the defaults,
    which may depend on some flags.

    Args:
        defaults: of all settings. They tell the types.
        choices: the values of those settings that have a fixed set of them.
        synonyms: what to do instead of a flag of another name (synonyms.py).

    Raises:
        ConfigError: lists all unknown flags and all values of a wrong type.
    """
    if "--version" in argv:
        print(f"sfrl {__version__}")
        sys.exit(0)
    switches = {name for name, default in defaults.items() if isinstance(default, bool)}
    switches |= {f"no_{name}" for name in switches} | {"help"}
    flags: dict[str, str] = {}
    problems: list[str] = []
    args = list(argv)
    while args:
        arg = args.pop(0)
        flag, has_value, value = ("--help" if arg == "-h" else arg).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            problems.append(f"{arg!r} is no flag; settings are given as --name=value")
            continue
        if name in switches:
            if has_value:
                problems.append(f"{arg} must have no value; use {flag}")
        elif not has_value and args and not args[0].startswith("--"):
            value = args.pop(0)
        elif not has_value and name in defaults:
            problems.append(f"{flag} needs a value; use {flag}=VALUE")
            continue
        flags[name] = value
        if name in switches:
            problem = None
        elif name not in defaults:
            problem = f"{flag} is unknown; {_remedy(name, defaults, synonyms)}"
        elif name in choices:
            is_one = value in choices[name]
            problem = (
                None if is_one else f"{flag}={value} must be one of {', '.join(choices[name])}"
            )
        else:
            problem = _type_problem(flag, value, defaults[name])
        problems += [problem] if problem else []
    if problems:
        raise ConfigError("\n".join(problems))
    return flags


def _remedy(name: str, defaults: Mapping[str, object], synonyms: Mapping[str, str]) -> str:
    """For a flag that there is not. Of a dotted one (train.gamma) the end counts."""
    name = name.rpartition(".")[2].lower()
    for synonym in (name, name.removeprefix("no_")):
        if synonym in synonyms:
            return synonyms[synonym]
    nearest = difflib.get_close_matches(name, defaults, n=3, cutoff=0.5)
    hint = " or ".join(f"--{match.replace('_', '-')}" for match in nearest)
    return f"did you mean {hint}?" if hint else "--help lists all flags"


def _type_problem(flag: str, value: str, default: object) -> str | None:
    if isinstance(default, str):
        return None
    try:
        whole_number(value) if isinstance(default, int) else float(value)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        return f"{flag}={value} must be {kind}, like {flag}={default}"
    return None
