"""The flags of a command as users type them: what is wrong with them is told a line each."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sfrl import __version__
from sfrl.settings.config import ConfigError
from sfrl.settings.fields import Setting, seconds, settings_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

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


def parse_flags(
    argv: Sequence[str],
    defaults: T,
    synonyms: Mapping[str, str],
    prog: str,
    description: str,
    names: str = "",
) -> T:
    """`defaults`, a dataclass, with the flags over them. Raises as `read_flags`.

    Args:
        prog: what the user has called, and what may stand before flags, for --help.
        names: the field, a tuple of texts, that has the arguments which are no flags; "": none is.
    """
    settings = {**settings_of(type(defaults))}
    settings.pop(names, None)
    found: list[str] | None = [] if names else None
    given = read_flags(argv, settings, synonyms, found)
    if "help" in given:
        print_help(defaults, settings, prog, description, is_whole=given["help"])
    if found:
        given[names] = tuple(found)
    return dataclasses.replace(defaults, **given)


def read_flags(
    argv: Sequence[str],
    settings: Mapping[str, Setting],
    synonyms: Mapping[str, str],
    names: list[str] | None = None,
) -> dict[str, Any]:
    """What the flags set, by the setting's name. `--version` leaves.

    `help` is there with --help, as False, and with --help-all, as True.

    Args:
        settings: all that there are.
        synonyms: what to do instead of a flag of another name (synonyms.py).
        names: takes the arguments that are no flags; None: none may be.

    Raises:
        ConfigError: lists all unknown flags and all values of a wrong type.
    """
    if "--version" in argv:
        print(f"sfrl {__version__}")
        sys.exit(0)
    switches = {"help": ("help", False), "help_all": ("help", True)}  # what each sets, and to what
    for name in (name for name, setting in settings.items() if setting.type is bool):
        switches |= {name: (name, True), f"no_{name}": (name, False)}
    given: dict[str, Any] = {}
    problems: list[str] = []
    args = list(argv)
    while args:
        arg = args.pop(0)
        flag, has_value, value = ("--help" if arg == "-h" else arg).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if names is not None and not flag.startswith("-"):
            names.append(arg)
            continue
        if not flag.startswith("--"):
            problems.append(f"{arg!r} is no flag; settings are given as --name=value")
            continue
        if name in switches:
            setting, is_on = switches[name]
            given[setting] = is_on
            if has_value:
                is_off = value.lower() in ("false", "0", "no", "off")
                opposite = name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"
                wanted = opposite if is_off and opposite in switches else name
                problems.append(f"{arg} must have no value; use --{wanted.replace('_', '-')}")
            continue
        if not has_value and args and not args[0].startswith("--"):
            value = args.pop(0)
        elif not has_value and name in settings and settings[name].bare:
            value = settings[name].bare
        elif not has_value and name in settings:
            problems.append(f"{flag} needs a value; use {flag}=VALUE")
            continue
        if name not in settings:
            problems.append(f"{flag} is unknown; {_remedy(name, settings, synonyms)}")
            continue
        try:
            given[name] = _value(settings[name], value)
        except ValueError as error:
            problems.append(f"{flag}={value} {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return given


def _remedy(name: str, settings: Mapping[str, Setting], synonyms: Mapping[str, str]) -> str:
    """For a flag that there is not. Of a dotted one (train.gamma) the end counts."""
    name = name.rpartition(".")[2].lower()
    for synonym in (name, name.removeprefix("no_")):
        if synonym in synonyms:
            return synonyms[synonym]
    nearest = difflib.get_close_matches(name, settings, n=3, cutoff=0.5)
    hint = " or ".join(settings[match].flag for match in nearest)
    return f"did you mean {hint}?" if hint else "--help-all lists all flags"


def _value(setting: Setting, text: str) -> str | int | float:
    """Raises ValueError, which says what it must be."""
    if setting.choices and text not in setting.choices:
        raise ValueError(f"must be one of {', '.join(setting.choices)}")
    if setting.type is str:
        return text
    try:
        if setting.is_duration:
            return seconds(text)
        return whole_number(text) if setting.type is int else float(text)
    except ValueError:
        if setting.is_duration:
            raise ValueError(f"must be a time, like {setting.flag}=90s, 10m or 2h") from None
        kind = "a whole number" if setting.type is int else "a number"
        raise ValueError(f"must be {kind}, like {setting.flag}={setting.default}") from None


# --- --help ---


class _WholeFlags(argparse.HelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def print_help(
    defaults: DataclassInstance,
    settings: Mapping[str, Setting],
    prog: str,
    description: str,
    is_whole: bool,
) -> NoReturn:
    """The settings of a dataclass in sections, with the values of `defaults`; then leave.

    Args:
        is_whole: all of them; or the usual ones, if there are any.
    """
    usage = f"{prog} [--name=value | --switch ...]"
    sections = _sections(type(defaults))
    # As marked where the doc is: an algorithm may set a default of its own below.
    marked = {
        name for docs in sections.values() for name, (_, is_usual) in docs.items() if is_usual
    }
    names = settings.keys() if is_whole or not marked else marked
    rest = "" if is_whole or not marked else f"--help-all tells of all {len(settings)} settings."
    parser = argparse.ArgumentParser(prog, usage, description, rest, formatter_class=_WholeFlags)
    if marked:
        parser.add_argument("--help-all", action="store_true", help="list all settings and leave")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    for title, docs in sections.items():
        section = parser.add_argument_group(title)
        for setting in (settings[name] for name in docs if name in names & settings.keys()):
            default = getattr(defaults, setting.name)
            text = (
                f"{docs[setting.name][0]} (default: {default if default != '' else repr(default)})"
            )
            text = text.replace("%", "%%")
            if setting.type is bool:
                action = argparse.BooleanOptionalAction
                section.add_argument(setting.flag, action=action, help=text)
            else:
                values = ",".join(setting.choices)
                kind = "TIME" if setting.is_duration else setting.type.__name__.upper()
                metavar = f"{{{values}}}" if values else kind
                nargs = "?" if setting.bare else None
                section.add_argument(setting.flag, metavar=metavar, nargs=nargs, help=text)
    parser.print_help()
    sys.exit(0)


def _sections(cls: type) -> dict[str, dict[str, tuple[str, bool]]]:
    """The docs under a dataclass's fields, by the first line of the doc of the class they are in.

    Beside each is whether the field is a usual one.

    What is not kept in the class, Python's parser finds in its source.
    """
    sections = {}
    for base in (base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)):
        tree = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(tree, ast.ClassDef)
        docs = {}
        for pair in itertools.pairwise(tree.body):
            match pair:
                case (
                    ast.AnnAssign(target=ast.Name(name)),
                    ast.Expr(ast.Constant(str(doc))),
                ) if name in settings_of(base):
                    docs[name] = (" ".join(doc.split()), settings_of(base)[name].is_usual)
        title = (ast.get_docstring(tree) or "settings").partition("\n")[0].removesuffix(".")
        sections[title] = docs
    return sections
