"""What the name of an environment means, and what is said of a name that means nothing."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any, cast

import ale_py  # noqa: F401  registers its games with Gymnasium
import gymnasium

from sfrl.envs.vec_env import VEC_ENV_METHODS

# The single-player games as ALE registers them: {"MsPacman": "ms_pacman", ...}.
ATARI_GAMES: dict[str, str] = {
    spec.name: spec.kwargs["game"]
    for spec in gymnasium.registry.values()
    if spec.namespace == "ALE"
}

gymnasium.register("Latency-v0", "sfrl.envs.latency:Latency", max_episode_steps=500)

_SHORT = {"latency": "Latency-v0"}  # names of ours without a version
# Ids that a package brings once it is imported, and sfrl's extra that installs it.
_FAMILIES = (
    ("MiniGrid-|BabyAI-", "minigrid", "minigrid"),
    ("MinAtar/", "minatar.gym", "minatar"),
    ("Vizdoom", "vizdoom.gymnasium_wrapper", "vizdoom"),
    ("dm_control/", "shimmy", "dm-control"),
    (
        "(exit|highway|intersection|lane-keeping|merge|parking|racetrack|roundabout|two-way|u-turn)-",
        *("highway_env", "highway"),
    ),
)
_OF_GYMNASIUM = re.compile(r"gymnasium\[(box2d|mujoco)\]")  # its extras that sfrl has as well
_INSTALLED = frozenset(gymnasium.registry)  # the ids that need no module to be named
_brought: dict[str, list[str]] = {}  # module that a user named -> ids that came with it
_ALE_ENTRY_POINT = "ale_py.env:AtariEnv"
_MAX_TEXT = 500  # characters of an error


class TrainsOnImportError(RuntimeError):
    """A module that a run has imported calls `sfrl.train`, which would import it once more."""

    def __init__(self) -> None:
        super().__init__(
            "this module calls sfrl.train when it is imported: put the call under "
            "if __name__ == '__main__'"
        )


class UnsupportedEnvError(ValueError):
    """An environment that cannot be trained, or not here; the text has its name and the reason."""


class UnknownEnvError(UnsupportedEnvError):
    """No Atari game and no Gymnasium id has this name."""


def atari_game(name: str) -> str | None:
    """The ROM id that a name means, None if it is no Atari name."""
    spec = gymnasium.registry.get(name)
    if spec is not None and spec.entry_point == _ALE_ENTRY_POINT:
        game: str = spec.kwargs["game"]
        return game
    games = {game.lower(): rom for game, rom in ATARI_GAMES.items()}
    return games.get(name.lower().replace("_", ""))


def is_same(name: str, other: str) -> bool:
    """Whether both mean one environment: of an Atari game there are several spellings."""
    game = atari_game(name)
    return name == other or (game is not None and game == atari_game(other))


def gymnasium_id(name: str) -> str:
    """The registered id that a name means, once its module, if it names one, is imported.

    Raises:
        UnknownEnvError: there is none; the text lists the nearest ones.
        Exception: what the module raises.
    """
    _check_form(name)
    module, _, env_id = name.rpartition(":")
    if module:
        _import(name, module, env_id)
    env_id = env_id if module else _SHORT.get(env_id.lower(), env_id)
    if env_id in gymnasium.registry:
        return env_id
    if module:
        raise UnknownEnvError(_not_registered(module, env_id))
    for pattern, module, extra in _FAMILIES:
        if re.match(pattern, env_id):
            raise UnknownEnvError(
                f"{name}: Gymnasium has no such id before its module is imported; name it as "
                f"{module}:{env_id}{_to_install(module, extra)}"
            )
    bare = _bare(env_id)
    meant = nearest(bare, ATARI_GAMES)
    meant = meant[:1] if atari_game(bare) else [*meant, *nearest(env_id, _ids())]
    meant += _of_envpool(env_id)
    hint = f"did you mean {' or '.join(meant)}? An" if meant else "an"
    raise UnknownEnvError(
        f"{name!r} is neither an Atari game nor a Gymnasium id; {hint} environment of your own is "
        "named module:Id-v0, so that it gets registered, and one of EnvPool's envpool:Id-v0"
    )


def vec_env_class(name: str) -> type[Any] | None:
    """The class with a `VecEnv`'s methods that "module:Class" names, None if it names none.

    Raises as `gymnasium_id` does.
    """
    module, _, found_name = name.rpartition(":")
    if not module or found_name in gymnasium.registry:
        return None
    _check_form(name)
    _import(name, module, found_name)
    found = getattr(sys.modules[module], found_name, None)
    is_meant = isinstance(found, type) and (hasattr(found, "send") or hasattr(found, "recv"))
    return found if is_meant and found_name not in gymnasium.registry else None


def _of_envpool(env_id: str) -> list[str]:
    """What EnvPool's task of this name is called here, if it is installed and has it."""
    if not re.search(r"-v\d+$", env_id):
        return []  # no task has such a name, and it takes seconds to ask
    try:
        tasks: list[str] = importlib.import_module("envpool").list_all_envs()
    except ImportError:
        return []
    return [f"envpool:{env_id}"] if env_id in tasks else []


def _check_form(name: str) -> None:
    """Raises UnknownEnvError if it names a file, or a module that cannot be one."""
    module, colon, env_id = name.rpartition(":")
    if not colon and env_id.endswith(".py"):
        module, env_id = env_id, "Id-v0"
    elif not colon or (module and module[0] != "." and "/" not in module and module[-3:] != ".py"):
        return
    stem = PurePath(module).name.removesuffix(".py").strip(".")
    meant = ":".join(part for part in (stem, env_id) if part)
    hint = f"; did you mean {meant}?" if meant else ""
    raise UnknownEnvError(
        f"{name!r} must be an Atari game, a Gymnasium id or module:Id-v0, with the module as "
        f"Python's import names it, not as a file{hint}"
    )


def is_installed(package: str) -> bool:
    """Whether it can be imported. A folder of this name, without a file of Python, is no package:
    wandb makes one where one trains."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _to_install(module: str, extra: str) -> str:
    is_there = is_installed(module.partition(".")[0])
    return "" if is_there else f', and install it: pip install "sfrl[{extra}]"'


def _import(name: str, module: str, env_id: str) -> None:
    before = set(gymnasium.registry)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            # The module is there; something it imports is not.
            for _, family, extra in _FAMILIES:
                if family == module:
                    raise UnknownEnvError(
                        f'{name} needs {error.name}: pip install "sfrl[{extra}]"'
                    ) from error
            raise
        install = next((_to_install(m, extra) for _, m, extra in _FAMILIES if m == module), "")
        raise UnknownEnvError(
            f"{name}: there is no module {module!r} to import; it must be a file where you start, "
            f"or be installed{install.replace(', and install it', '')}{_hidden(module)}"
        ) from error
    tell = getattr(imported, "register_envs", None)  # some register when they are told to
    is_own = getattr(tell, "__module__", None) == module  # and not Gymnasium's of this name
    if tell is not None and is_own and env_id not in gymnasium.registry:
        tell()
    _brought.setdefault(module, [name for name in gymnasium.registry if name not in before])


def _not_registered(module: str, env_id: str) -> str:
    """A module that could be imported, and an id that still is not there."""
    found, env_class = sys.modules[module], getattr(sys.modules[module], env_id, None)
    own = _brought[module]
    bases = (gymnasium.Env, gymnasium.vector.VectorEnv)
    if isinstance(env_class, type) and not issubclass(env_class, bases):
        missing = [method for method in VEC_ENV_METHODS if not hasattr(env_class, method)]
        return (
            f"{module}:{env_id} is a class, and must be a gymnasium.Env, a "
            f"gymnasium.vector.VectorEnv, or have what VecEnv has; it is neither of the two, and "
            f"has no {', '.join(missing)} (docs/adding-an-environment.md)"
        )
    for pattern, family, extra in _FAMILIES:
        is_meant = family == module and re.match(pattern, env_id)
        if is_meant and not any(re.match(pattern, known) for known in gymnasium.registry):
            return f'{module}:{env_id} needs more than {module}: pip install "sfrl[{extra}]"'
    meant = [f"{module}:{known}" for known in nearest(env_id, own) or own[:3]]
    meant = meant or nearest(env_id, _ids())
    where = getattr(found, "__file__", None) or f"module {module!r}"
    if meant:
        hint = f"did you mean {' or '.join(meant)}?"
    elif isinstance(env_class, type):
        is_vector = issubclass(env_class, gymnasium.vector.VectorEnv)
        entry_point = f"vector_entry_point={env_id}" if is_vector else env_id
        hint = (
            f'register its class: gymnasium.register("{env_id}-v0", {entry_point}), and name it '
            f"{module}:{env_id}-v0"
        )
    else:
        hint = "it must call gymnasium.register (docs/adding-an-environment.md)"
    problem = f"{where} registers no {env_id!r}" if env_id else "the environment's id is missing"
    return f"{module}:{env_id}: {problem}; {hint}{_hidden(module)}"


def _hidden(module: str) -> str:
    """Of a module where the user stands that another one of the same name goes before."""
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return ""
    found = Path(file).resolve()
    here = Path.cwd().resolve()
    for path in (here / f"{top}.py", here / top):
        if path.exists() and path not in (found, *found.parents):
            return f"; {path} is hidden by {file}: rename it"
    return ""


def what_it_needs(env_id: str, error: Exception) -> str | None:
    """Why an environment of Gymnasium's own cannot be made, and the remedy; None: not its own."""
    entry_point = gymnasium.registry[env_id].entry_point
    is_gone = getattr(entry_point, "__module__", None) == "gymnasium.envs"  # a function that tells
    if is_gone and env_id.startswith("GymV2"):
        return (
            f"{env_id} must be passed the environment that it wraps: install shimmy "
            f'(pip install "shimmy[gym-v21]" or "shimmy[gym-v26]"), and register a function that '
            f"returns the wrapped one (docs/adding-an-environment.md)"
        )
    if is_gone:
        newest = f"{_bare(env_id)}-v5"
        return f'{env_id} has left Gymnasium; use {newest} (pip install "sfrl[mujoco]")'
    if not str(entry_point).startswith("gymnasium.envs."):
        return None
    if isinstance(error, ModuleNotFoundError):  # the others have a text of Gymnasium's
        return f'{env_id} needs {error.name}: pip install "gymnasium[jax]"'
    if found := _OF_GYMNASIUM.search(str(error)):
        what = re.split(r"[,.] ", str(error))[0]  # without Gymnasium's own remedy
        return f'{env_id}: {what}: pip install "sfrl[{found[1]}]"'
    return f"{env_id}: {error}"


def wrapper_of(name: str) -> Callable[..., Any]:
    """What a name in --wrappers means. Raises UnsupportedEnvError, which names the nearest."""
    module, _, class_name = name.rpartition(":")
    rule = "a name of gymnasium.wrappers or module:Class"
    try:
        found = importlib.import_module(module or "gymnasium.wrappers")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UnsupportedEnvError(
            f"wrapper {name!r} must be {rule}, and there is no module {module!r} to import"
        ) from error
    known = [
        known
        for known, value in vars(found).items()
        if isinstance(value, type) and issubclass(value, gymnasium.Wrapper)
    ]
    wrapper = getattr(found, class_name, None) if module or class_name in known else None
    if not callable(wrapper):
        meant = " or ".join(
            f"{module}:{near}" if module else near for near in nearest(class_name, known)
        )
        hint = f"; did you mean {meant}?" if meant else ""
        raise UnsupportedEnvError(f"wrapper {name!r} must be {rule}, and is unknown{hint}")
    return cast(Callable[..., Any], wrapper)


def _ids() -> list[str]:
    """Gymnasium's, except for those that are there only to say that they have moved."""
    specs = [gymnasium.registry[name] for name in sorted(_INSTALLED)]
    return [
        spec.id
        for spec in specs
        if isinstance(spec.entry_point, str) and spec.entry_point != _ALE_ENTRY_POINT
    ]


def _bare(env_id: str) -> str:
    """Without namespace, version and what the older Atari ids say of settings."""
    return re.split("-v|-ram|NoFrameskip|Deterministic", env_id.rpartition("/")[2])[0]


def nearest(wanted: str, known: Iterable[str]) -> list[str]:
    """At most three that are spelled like it."""
    spelling = {name.lower(): name for name in known}
    return [spelling[match] for match in difflib.get_close_matches(wanted.lower(), spelling)]


def in_one_line(error: BaseException) -> str:
    """Type, text and place of an error of code that is not ours."""
    *callers, place = traceback.extract_tb(error.__traceback__)
    file, line, text = place.filename, place.lineno, str(error)
    if isinstance(error, SyntaxError) and error.filename:
        file, line, text = error.filename, error.lineno, error.msg
    elif not callers:  # a call of ours did not fit, and no code that is not ours was reached
        file = ""
    where = f" ({file}, line {line})" if file and "importlib" not in file else ""
    return f"{type(error).__name__}: {' '.join(text.split())[:_MAX_TEXT]}{where}"
