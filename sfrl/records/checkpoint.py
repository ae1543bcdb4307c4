"""Checkpoints: one dictionary per file, written whole or not at all, loaded without running code.

    <run_dir>/checkpoints/latest-<env_frames>.pt    the newest few
    <run_dir>/checkpoints/best.pt                   the one with the best score

torch is imported where a file is read or written: the trainer, which looks for runs but holds no
network, does without it.
"""

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfrl.envs import is_same
from sfrl.envs.logs import own_logger
from sfrl.records.metrics import metrics_problem
from sfrl.records.run_folder import LATEST_NAME, open_new
from sfrl.records.start import Start
from sfrl.settings.algorithms import MAX_CONFIG_BYTES, STARTS, config_from, load_config
from sfrl.settings.config import Config

log = own_logger(__name__)

# 1: networks saw images less their mean; 2: NatureCNN's first layer was 8x8; 3: returns were
# normalized with their mean (`ValueHead` converts that).
FORMAT_VERSION = 4
_READABLE_VERSIONS = (3, FORMAT_VERSION)
REQUIRED_KEYS = ("version", "model", "optimizer", "counters", "config", "rng")

_MAX_PARTS = 300_000  # of a state, those in containers included; of 64 Atari games it has 2,000
_MAX_DEPTH = 30  # of containers in containers: others walk them by recursion


# What reading a damaged file was seen to raise (every bit of the archive's headers flipped, one by
# one).
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    *(TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, MemoryError),
    struct.error,
)


# What loading another model's state, or nonsense, was seen to raise (tests/test_hostile.py).
MISMATCHES = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(RuntimeError, OverflowError, MemoryError),
)


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or not one of ours; the message says what to do."""


class Checkpoint(NamedTuple):
    state: dict[str, Any]  # Any: state_dict() and load_state_dict() take and give it
    path: Path


def save(run_dir: Path | str, state: Mapping[str, Any], env_frames: int, *, keep: int = 3) -> Path:
    """Write `checkpoints/latest-<env_frames>.pt` and remove all but the newest `keep`.

    Checkpoints with more frames than this one get another name: the run was resumed from before
    them since it could not read them, and others perhaps can.

    Args:
        run_dir: the run's folder; `checkpoints/` is created if missing.
        state: `REQUIRED_KEYS` without `version`, which is added here, and whatever else is needed
            to go on. Tensors, numbers, strings, None and containers of them.
        env_frames: emulated frames of the run so far.
        keep: how many `latest` files stay.

    Raises:
        ValueError: a required key is missing, or `keep` is below 1.
        CheckpointError: what was written cannot be loaded again; nothing was changed.
        OSError: the disk is full or cannot be written; nothing was changed.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would remove the checkpoint just written; use at least 1")
    path = _folder(run_dir) / f"latest-{env_frames:012d}.pt"
    _write(path, state)
    others = [other for other in latest_paths(run_dir) if other != path]
    older = [other for other in others if _frames_in(other) < env_frames]
    try:
        for outdated in older[keep - 1 :]:
            outdated.unlink(missing_ok=True)
        for newer in set(others) - set(older):
            aside = newer.with_name(f"{newer.name}.left")
            os.replace(newer, aside)
            log.warning("%s has more frames than the run; it is now %s", newer, aside.name)
    except OSError as error:  # this one has been written all the same
        log.warning("checkpoints that are outdated cannot be removed: %s", error)
    return path


def save_best(run_dir: Path | str, state: Mapping[str, Any], score: float) -> Path:
    """Write `checkpoints/best.pt`, with `score` among its keys, over the one before.

    Raises:
        ValueError, CheckpointError, OSError: as `save`.
    """
    path = _folder(run_dir) / "best.pt"
    _write(path, {**state, "score": float(score)})
    return path


def best_score(run_dir: Path | str) -> float | None:
    """The score of `best.pt`; None if there is none that can be read."""
    path = _folder(run_dir) / "best.pt"
    if not path.exists():
        return None
    try:
        score = load(path).get("score")
        return score if isinstance(score, float) and math.isfinite(score) else None
    except CheckpointError as error:
        log.warning("%s; the next good score replaces it", error)
        return None


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint; its tensors are on the CPU.

    The checksums of what is read are verified, and no code runs from it (archive.py).

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this version.
    """
    from sfrl.records import archive  # and torch

    path = Path(path)
    remedy = "check the path, or use another checkpoint"
    if path.parent.name == "checkpoints" and path.suffix == ".pt":  # of a run, not any file
        remedy = "delete it and use an earlier one"
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise CheckpointError(f"{path} is no file; check the path")
    try:
        state = archive.read(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path") from error
    except DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}); {remedy}") from error

    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dict; {remedy}")
    if missing := [key for key in REQUIRED_KEYS if key not in state]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; {remedy}")
    version = state["version"]
    if not isinstance(version, int) or version not in _READABLE_VERSIONS:
        raise CheckpointError(
            f"{path} has format version {version!r:.40}, this code reads {FORMAT_VERSION}; "
            "use the version of sfrl that wrote it"
        )
    try:
        problem = next(_problems(state), None)
    except (RecursionError, *MISMATCHES) as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}); {remedy}") from error
    if problem:
        raise CheckpointError(f"{path} is not a checkpoint of ours ({problem}); {remedy}")
    return state


def _problems(state: dict[str, Any]) -> Iterator[str]:
    """What in the file cannot come from `save`, where others would stumble over it."""
    import torch

    # First, since what holds one list many times, nested, has more parts than anyone can walk.
    for num_parts, (part, depth) in enumerate(_parts(state)):
        match part:
            case dict() if not all(isinstance(key, str | int) for key in part):
                yield "a dict has keys that are neither texts nor whole numbers"
            case (
                torch.Tensor() | dict() | list() | tuple() | None | bool() | int() | float() | str()
            ):
                pass
            case _:
                yield f"a {type(part).__name__}"
        if num_parts >= _MAX_PARTS or depth > _MAX_DEPTH:
            yield f"it has more than {_MAX_PARTS} parts, or is nested more than {_MAX_DEPTH} deep"
            return
    for key in REQUIRED_KEYS[1:]:
        if not isinstance(state[key], dict):
            yield f"its {key} is a {type(state[key]).__name__}"
            return
    for name, value in state["counters"].items():
        if not isinstance(value, int) or not 0 <= value < 2**62:
            yield f"its counter {name!r:.40} is {value!r:.40}"
    encoders = ("encoder.", "value_encoder.") if ":" in str(state["config"].get("model")) else ()
    for name, value in state["model"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            yield f"its model has {name!r:.40}: {type(value).__name__}"
        elif not name.startswith(encoders) and not value.isfinite().all():  # a user's may have such
            yield f"its model has NaN or infinity in {name!r:.80}"
    for part, _ in _parts(state["optimizer"]):
        if isinstance(part, torch.Tensor) and not part.isfinite().all():
            yield "its optimizer has NaN or infinity"
    if "metrics" in state and (problem := metrics_problem(state["metrics"])):
        yield f"its metrics: {problem}"


def _parts(tree: object) -> Iterator[tuple[object, int]]:
    """The tree and all that is in its containers, and in theirs, with how many are around it."""
    waiting = [(tree, 0)]
    while waiting:
        part, depth = waiting.pop()
        yield part, depth
        if isinstance(part, dict | list | tuple):
            inner = part.values() if isinstance(part, dict) else part
            waiting.extend((value, depth + 1) for value in inner)


def load_latest(run_dir: Path | str) -> Checkpoint:
    """The newest `latest` checkpoint that can be read; each damaged one gets a warning.

    Raises:
        CheckpointError: there is none.
    """
    problem = (
        "a run writes none before it has learned something; train for longer, or name another run"
    )
    paths = latest_paths(run_dir)
    for path in paths:
        try:
            return Checkpoint(load(path), path)
        except CheckpointError as error:
            problem = str(error)
            if path != paths[-1]:
                log.warning("%s; trying the one before it", error)
    raise CheckpointError(f"{_folder(run_dir)} has no checkpoint that can be read; {problem}")


def unfinished_bytes(run_dir: Path | str) -> int:
    """How much has been written of a checkpoint that is being written; 0 if none is."""
    size = 0
    for path in _folder(run_dir).glob("*.tmp"):
        with suppress(FileNotFoundError):  # it has got its name
            size += path.stat().st_size
    return size


def tensors_of(tree: Any) -> Any:
    """The same containers with tensors in place of NumPy's arrays, as `save` takes them."""
    import torch

    match tree:
        case dict():
            return {key: tensors_of(value) for key, value in tree.items()}
        case list():
            return [tensors_of(value) for value in tree]
        case np.ndarray():
            return torch.from_numpy(tree.copy())
        case _:
            return tree


def arrays_of(tree: Any) -> Any:
    """What `tensors_of` was given."""
    import torch

    match tree:
        case dict():
            return {key: arrays_of(value) for key, value in tree.items()}
        case list():
            return [arrays_of(value) for value in tree]
        case torch.Tensor():
            return tree.numpy()
        case _:
            return tree


def find(run_dir: Path | str, which: str) -> Checkpoint:
    """Load by name: `latest` (the newest readable), `best`, or the path of a file.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if which == "latest":
        return load_latest(run_dir)
    path = _folder(run_dir) / "best.pt" if which == "best" else Path(which)
    if which == "best" and not path.exists():
        raise CheckpointError(f"{path} does not exist yet; use --checkpoint=latest")
    return Checkpoint(load(path), path)


def latest_paths(run_dir: Path | str) -> list[Path]:
    """The run's `latest` checkpoints, newest (most frames) first, readable or not.

    Files alone: a folder, a link or a pipe of such a name is none.
    """
    paths = [
        path
        for path in _folder(run_dir).glob("latest-*.pt")
        if LATEST_NAME.fullmatch(path.name) and _is_file(path)
    ]
    return sorted(paths, key=_frames_in, reverse=True)


def _frames_in(path: Path) -> int:
    return int(path.stem.removeprefix("latest-"))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def newest_run(root: Path | str = "runs", env: str | None = None) -> Path:
    """The newest run folder in `root` that has a checkpoint, of environment `env` if given.

    A run's age is that of its `config.json`, which every start writes; if that is missing, of its
    newest checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    started_ns = {}
    for run_dir in Path(root).glob("*/"):
        if paths := latest_paths(run_dir):
            config = run_dir / "config.json"
            started_ns[run_dir] = (config if _is_file(config) else paths[0]).stat().st_mtime_ns
    for run_dir in sorted(started_ns, key=started_ns.__getitem__, reverse=True):
        of_run = None if env is None else _env_of(run_dir)
        if env is None or (of_run is not None and is_same(of_run, env)):
            return run_dir
    wanted = "run" if env is None else f"run of --env={env}"
    raise CheckpointError(
        f"no {wanted} with a checkpoint in {root}/; train one first, or name it with --run-dir"
    )


def _env_of(run_dir: Path) -> str | None:
    path = run_dir / "config.json"
    try:
        if not os.path.lexists(path):
            return saved_config(run_dir).env
        if not _is_file(path) or path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("no file, or too large")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        log.warning("%s is not JSON (%s); passing over this run", path, error)
        return None
    env = config.get("env") if isinstance(config, dict) else None
    return env if isinstance(env, str) else None


def save_config(config: Config, run_dir: Path, starts: Sequence[Start] = ()) -> None:
    """Write config.json whole or, if killed meanwhile, leave the one that was there.

    Args:
        starts: of the run, the present one last.
    """
    temporary = run_dir / "config.json.tmp"
    content = {**dataclasses.asdict(config), STARTS: list(starts)}
    try:
        with open_new(temporary) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave an empty file under the name
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, run_dir / "config.json")


def saved_config(run_dir: Path) -> Config:
    """The settings of the run that is in the folder; if config.json is missing, its checkpoint's.

    Raises:
        CheckpointError: neither is there.
        ConfigError: they are no settings.
    """
    path = run_dir / "config.json"
    if os.path.lexists(path):
        return load_config(path)
    if not latest_paths(run_dir):
        is_empty = not run_dir.exists() or not any(run_dir.iterdir())
        remedy = ", or start a run there without --resume" if is_empty else ""
        raise CheckpointError(
            f"run_dir={run_dir} holds no run to resume, for there is neither {path} nor a "
            f"checkpoint; check the path{remedy}"
        )
    state, checkpoint_path = load_latest(run_dir)
    log.warning("%s is missing; going by the settings in %s", path, checkpoint_path)
    return config_from(state["config"], str(checkpoint_path))


def in_one_line(error: BaseException) -> str:
    """Its text, which may quote what is in the file."""
    return " ".join(str(error).split())[:2000]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {in_one_line(error):.200}"


def _folder(run_dir: Path | str) -> Path:
    return Path(run_dir) / "checkpoints"


def _write(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` so that a kill at any moment leaves the old file or the new one."""
    import torch

    state = {**state, "version": FORMAT_VERSION}
    if missing := [key for key in REQUIRED_KEYS if key not in state]:
        raise ValueError(
            f"a checkpoint needs the keys {', '.join(REQUIRED_KEYS)}; missing: {missing}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob("*.tmp"):  # of a writer that was killed
        leftover.unlink()

    content = io.BytesIO()  # torch.save to a full disk would tell of zip archives, not of disks
    torch.save(state, content)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open_new(temporary) as file:
            file.write(content.getbuffer())
            file.flush()
            # Without it the rename may reach the disk before the data: a power cut would leave an
            # empty file under the final name.
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    try:
        load(temporary)
    except CheckpointError as error:
        temporary.unlink()
        raise CheckpointError(
            f"{path} was not written, for it could not be loaded again; "
            f"keep to tensors and plain Python types in the state ({error})"
        ) from error
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # which such a file system cannot
            raise
    finally:
        os.close(folder)
