"""What the page asks for, as plain values for JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from sfrl.records import run_folder
from sfrl.records.run_folder import RunFolderError
from sfrl.records.timing import COMPONENT_STAGES
from sfrl.runs import reader
from sfrl.runs.comparison import Group, compare
from sfrl.runs.diagnosis import diagnose
from sfrl.runs.figures import figures
from sfrl.runs.reader import Run
from sfrl.settings.algorithms import class_of, load_config, load_starts
from sfrl.settings.config import ConfigError
from sfrl.settings.fields import settings_of
from sfrl.systems import SYSTEMS
from sfrl.web.layout import make_layout

_DEPTH = 4  # folders between the one that is named and a run
_LOG_LINES = 300
_AXES = ("time_s", "env_frames", "env_steps")


def list_of_runs(root: Path) -> dict[str, object]:
    """The figures of all runs in the folder and those below it, in the order of their paths."""
    runs = []
    for folder in _run_folders(root, _DEPTH):
        with suppress(OSError, RunFolderError):  # it is gone, or what is in it is no run's
            runs.append(_facts(root, reader.read(folder, most_records=1)))
    return {"folder": str(root), "runs": runs}


def one_run(root: Path, path: str) -> dict[str, object]:
    """All that the page shows of a run.

    Raises:
        RunFolderError: the path names no run below `root`.
    """
    run = reader.read(found(root, path))
    names = dict.fromkeys(name for record in run.records for name in record)
    starts = _starts(run.folder / "config.json")
    return {
        **_facts(root, run),
        "records": {name: [record.get(name) for record in run.records] for name in names},
        "components": COMPONENT_STAGES,
        "findings": [finding._asdict() for finding in diagnose(run)],
        "log": run.log.splitlines()[-_LOG_LINES:],
        "settings": _settings(run, starts),
        "starts": [
            {str(key): _text(value) for key, value in start.items() if key != "changed"}
            for start in starts
        ],
        "topology": _topology(run),
    }


def several_runs(root: Path, paths: Sequence[str]) -> dict[str, object]:
    """Their curves, and the groups of those that differ in nothing but their seeds.

    Raises:
        RunFolderError: a path names no run below `root`.
    """
    runs = [reader.read(found(root, path)) for path in dict.fromkeys(paths)]
    return {
        "runs": [
            {
                "path": _path(root, run.folder),
                **{axis: run.curve(axis) for axis in _AXES},
            }
            for run in runs
        ],
        "groups": [_group(root, group) for group in compare(runs)],
    }


def ask(root: Path, path: str, what: str) -> dict[str, object]:
    """Ask the run for one of `run_folder.REQUESTS`.

    Raises:
        RunFolderError: there is no such run or request, or the run is not live.
    """
    if what not in run_folder.REQUESTS:
        raise RunFolderError(f"a run can be asked for {' or '.join(run_folder.REQUESTS)} alone")
    run_folder.request(found(root, path), what)
    return {}


def _facts(root: Path, run: Run) -> dict[str, object]:
    return {**figures(run), "path": _path(root, run.folder)}


def _group(root: Path, group: Group) -> dict[str, object]:
    means = {
        "score": group.score,
        "best": group.best,
        "score_there": group.score_there,
        "minutes": group.minutes,
        "frames_per_s": group.frames_per_s,
    }
    return {
        "label": group.label,
        "runs": [_path(root, run.folder) for run in group.runs],
        "frames": group.frames,
        **{name: mean and mean._asdict() for name, mean in means.items()},
    }


def _settings(run: Run, starts: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Each with what it would have been by default, and who has changed it: "", nobody.

    Both are None if the run's newest start does not tell.
    """
    known = settings_of(class_of(run.system)) if run.system in SYSTEMS else {}
    changed = [_changes(start) for start in starts]
    settings: list[dict[str, object]] = []
    for name, value in run.settings.items():
        if name in known and known[name].is_note:
            continue
        default, by = None, None
        if changed and changed[-1] is not None:
            default, by = changed[-1].get(name, (str(value), ""))
            earlier = [each[name][1] for each in changed if each and name in each]
            if by == "earlier start":  # the newest of those that has set it
                by = next((by for by in reversed(earlier) if by != "earlier start"), by)
        settings.append({"name": name, "value": str(value), "default": default, "by": by})
    return settings


def _changes(start: Mapping[str, object]) -> dict[str, tuple[str, str]] | None:
    """By name: the default, and who has changed it. None: the start does not tell."""
    changed = start.get("changed")
    if not isinstance(changed, dict):
        return None
    return {
        str(name): (str(change.get("default")), str(change.get("by")))
        for name, change in changed.items()
        if isinstance(change, dict)
    }


def _starts(path: Path) -> list[dict[str, Any]]:
    """Those in a config.json; [] if it is missing or damaged."""
    with suppress(ConfigError):
        return load_starts(path)
    return []


def _topology(run: Run) -> dict[str, object] | None:
    """None: its config.json is missing or damaged, or of another version of sfrl."""
    with suppress(ConfigError):
        return asdict(make_layout(load_config(run.folder / "config.json"), *run.interval))
    return None


def _text(value: object) -> str:
    if isinstance(value, dict):
        within = ((key, _text(item), isinstance(item, dict)) for key, item in value.items())
        return ", ".join(
            f"{key}: ({text})" if many else f"{key}: {text}" for key, text, many in within
        )
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    return "-" if value is None else str(value)


# --- folders ---


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Links are not followed: they may lead out of the folder that is shown, or into a circle."""
    try:
        if run_folder.holds_a_run(folder):
            yield folder
        elif depth:
            with os.scandir(folder) as entries:
                below = sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))
            for path in below:
                yield from _run_folders(Path(path), depth - 1)
    except (OSError, RunFolderError):  # another user's, or gone
        return


def _path(root: Path, folder: Path) -> str:
    """By which the page names a run: relative to the folder that is shown."""
    return folder.relative_to(root).as_posix()


def found(root: Path, path: str) -> Path:
    """The run's folder. Raises RunFolderError: there is none, or the path leads out of `root`."""
    parts = PurePosixPath(path).parts
    folders = [root.joinpath(*parts[: index + 1]) for index in range(len(parts))]
    is_below = ".." not in parts and not path.startswith("/") and "\0" not in path
    try:
        is_run = (
            is_below
            and len(parts) <= _DEPTH
            and all(folder.is_dir() and not folder.is_symlink() for folder in folders)
            and run_folder.holds_a_run(root.joinpath(*parts))
        )
    except OSError:  # a name that is too long
        is_run = False
    if not is_run:
        raise RunFolderError(f"{path} is no run in {root}; the list tells which there are")
    return root.joinpath(*parts)
