"""Gymnasium's spaces: how observations become leaves, and rows of actions what environments take.

A leaf of a space is a part of it that is no Dict and no Tuple; a path is the keys that lead to it.
"""

import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from numpy.typing import NDArray

from sfrl.envs.names import UnsupportedEnvError
from sfrl.envs.vec_env import ACTION_MASK, NO_BOUND, OBS, Actions, ActionSpec, Bounds, Leaf

Array: TypeAlias = NDArray[Any]
LeafSpace: TypeAlias = Box | Discrete | MultiDiscrete | MultiBinary
Path: TypeAlias = tuple[Hashable, ...]

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"
_MAX_SCALE = 65_536.0
_MAX_CHOICES = 2**20  # of a leaf, in all: networks have a row of weights for each
_MAX_ACTIONS = 2**24  # up to which whole numbers are exact in float32
_MAX_WHOLE = 2.0**53  # up to which whole numbers are exact in float64
_MAX_TABLE = 4096  # actions that are made in advance
_PICTURE_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA or a stack of four
_MIN_PICTURE = 8  # pixels of a side; below it an array of floats is no picture
_MIN_GREY = 16  # likewise, of one without channels, which may be a table


@dataclass(frozen=True)
class Part:
    """A leaf of an observation, and where it comes from."""

    leaf: Leaf
    space: LeafSpace  # as the environment declares it
    path: Path
    view: Callable[[Array], Array] | None  # to the leaf's shape, and from 0 on; None: as it is
    reading: str  # what was assumed; "" if it is plain
    order: tuple[int, ...] = ()  # of an image's axes in its leaf, if they change places

    @property
    def where(self) -> str:
        return where_is(self.path)


def where_is(path: Path) -> str:
    """What leads to it, as it is written in Python."""
    return "observation" + _keys(path)


def observation_parts(env_id: str, space: Space[Any], *, has_mask: bool = False) -> list[Part]:
    """The leaves of an observation in the space's order.

    Args:
        has_mask: the key `ACTION_MASK` of a Dict is the mask, and no leaf.

    Raises:
        UnsupportedEnvError: one is of a space that is not supported, or two have the same name.
    """
    parts: dict[str, Part] = {}
    for path, leaf_space in _leaf_spaces(env_id, space, "observation_space", space):
        if has_mask and path[0] == ACTION_MASK:
            continue
        part = _part(env_id, leaf_space, path)
        if (other := parts.get(part.leaf.name)) is not None:
            raise UnsupportedEnvError(
                f"{env_id}: {other.where} and {part.where} are both named {part.leaf.name!r}, and "
                f"names must differ; rename a key, so that keys joined by dots do"
            )
        parts[part.leaf.name] = part
    if not parts:
        raise UnsupportedEnvError(
            f"{env_id}: its observation is {ACTION_MASK!r} alone, which only forbids actions; "
            f"at least one number or choice to observe is needed"
        )
    return list(parts.values())


def _leaf_spaces(
    env_id: str, space: Space[Any], name: str, whole: Space[Any], path: Path = ()
) -> Iterator[tuple[Path, LeafSpace]]:
    """The leaves and their paths. Raises UnsupportedEnvError."""
    where = f"{env_id}: {name}{_keys(path)}"
    if_empty = "leave it out" if path else "at least one number or choice is needed"
    if isinstance(space, Dict | Tuple):
        parts = parts_of(space)
        if not parts:
            raise UnsupportedEnvError(f"{where} is an empty {type(space).__name__}; {if_empty}")
        for key, part in parts.items():
            yield from _leaf_spaces(env_id, part, name, whole, (*path, key))
        return
    if not isinstance(space, LeafSpace):
        raise UnsupportedEnvError(
            f"{where} is {in_short(space)}; supported is {_SUPPORTED}. {_remedy(name, whole, path)}"
        )
    if space.shape is None or 0 in space.shape:
        raise UnsupportedEnvError(f"{where} is {in_short(space)}, which is empty; {if_empty}")
    yield path, space


def parts_of(space: Dict | Tuple[Any]) -> dict[Any, Space[Any]]:
    return dict(space.spaces) if isinstance(space, Dict) else dict(enumerate(space.spaces))


def _remedy(name: str, whole: Space[Any], path: Path) -> str:
    """For a leaf that is not supported."""
    if name == "action_space":
        return "A gymnasium.ActionWrapper of yours may turn it into one of these"
    parts = parts_of(whole) if isinstance(whole, Dict | Tuple) else {}
    if others := [key for key, part in parts.items() if _is_supported(part)]:
        keys = json.dumps({"filter_keys": others}, separators=(",", ":"), default=str)
        return f"--wrappers='FilterObservation{keys}' leaves it out"
    return "A gymnasium.ObservationWrapper of yours has to make an array of it, or leave it out"


def _is_supported(space: Space[Any]) -> bool:
    if isinstance(space, Dict | Tuple):
        return bool(parts := parts_of(space)) and all(map(_is_supported, parts.values()))
    return isinstance(space, LeafSpace) and bool(space.shape is not None and 0 not in space.shape)


def _keys(path: Path) -> str:
    return "".join(f"[{key!r}]" for key in path)


def in_short(value: object) -> str:
    """In one line; a Box or an observation may have many numbers."""
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:196]} ..."


def choice_sizes(space: LeafSpace) -> tuple[int, ...]:
    """How many values each of its choices has; a Box has none."""
    if isinstance(space, Discrete):
        return (int(space.n),)
    if isinstance(space, MultiDiscrete):
        return tuple(space.nvec.reshape(-1).tolist())
    return () if isinstance(space, Box) else (2,) * int(np.prod(space.shape))


def start_of(space: LeafSpace) -> NDArray[np.int64]:
    """The lowest value of each choice, in the space's shape."""
    start = np.asarray(getattr(space, "start", 0), np.int64)
    return np.broadcast_to(start, space.shape or ())


# --- observations ---


def _part(env_id: str, space: LeafSpace, path: Path) -> Part:
    name = ".".join([OBS, *map(str, path)])
    where = f"observation_space{_keys(path)}"
    if isinstance(space, Discrete | MultiDiscrete):
        sizes, start = choice_sizes(space), start_of(space)
        if sum(sizes) > _MAX_CHOICES:
            raise UnsupportedEnvError(
                f"{env_id}: {where} is {in_short(space)}, which has {sum(sizes)} values in all, and"
                f" at most {_MAX_CHOICES} are supported; give it as numbers, in a Box"
            )
        leaf = Leaf(name, "choice", (len(sizes),), "int32", sizes=sizes)
        return Part(leaf, space, path, lambda a: (a.astype(np.int64) - start).reshape(-1), "")
    if isinstance(space, MultiBinary):
        size = int(np.prod(space.shape))
        view = None if len(space.shape) == 1 else lambda array: array.reshape(size)
        return Part(Leaf(name, "vector", (size,), "uint8"), space, path, view, "")
    shape, dtype, scale, order = _box_layout(f"{env_id}: {where}", space)
    leaf = Leaf(name, "image" if len(shape) == 3 else "vector", shape, dtype, scale)
    view = _box_view(space.shape, shape, order)
    return Part(leaf, space, path, view, _reading(env_id, where, space, leaf), order)


def _box_view(
    shape: tuple[int, ...], leaf_shape: tuple[int, ...], order: tuple[int, ...]
) -> Callable[[Array], Array] | None:
    """Of a Box, in which its axes change places, and then some of them are joined."""
    if len(order) > len(leaf_shape):
        return lambda obs: obs.transpose(order).reshape(leaf_shape)
    if order:
        return lambda obs: obs.transpose(order)
    return None if shape == leaf_shape else lambda obs: obs.reshape(leaf_shape)


def _box_layout(where: str, space: Box) -> tuple[tuple[int, ...], str, float, tuple[int, ...]]:
    """Shape, dtype and scale of the leaf, and the order in which it has the array's axes."""
    shape, is_pixels = space.shape, _is_pixels(space)
    low, high = float(space.low.min()), float(space.high.max())
    is_uniform = bool((space.low == low).all() and (space.high == high).all())
    is_image = (is_pixels and 1 < len(shape) <= 4) or (
        is_uniform and np.isfinite((low, high)).all() and _is_picture(where, space)
    )
    dtype, scale = "uint8" if is_pixels else "float32", obs_scale(low, high)
    if not is_image:
        if not is_pixels and (len(shape) < 2 or not is_uniform):
            scale = 1.0  # bounds of single numbers say little of their usual size
        size = int(np.prod(shape))
        return (size,), dtype, scale, ()
    if len(shape) == 2:
        return (1, *shape), dtype, scale, ()
    *stack, height, width, channels = shape
    is_first = _channel_axis(where, space) == len(stack)
    if is_first:
        *stack, channels, height, width = shape
    leaf_shape = (int(np.prod(stack)) * channels, height, width)
    if is_first:
        return leaf_shape, dtype, scale, ()
    return leaf_shape, dtype, scale, (0, 3, 1, 2) if stack else (2, 0, 1)


def obs_scale(low: float, high: float) -> float:
    """The largest size of a number within these bounds, or 1 where they say nothing.

    Divided by it, pixels of 0..255 and planes of 0..1 both reach up to 1. Bounds beyond those of 16
    bits are the largest numbers of a type rather than of the observations.
    """
    scale = max(abs(low), abs(high))
    return scale if 0 < scale <= _MAX_SCALE else 1.0


def _is_pixels(space: Box) -> bool:
    return space.dtype in (np.uint8, np.bool_)


def _told_axis(where: str, space: Box) -> int | None:
    """What `channel_axis` says; None if it says nothing. Raises UnsupportedEnvError."""
    told: object = getattr(space, "channel_axis", None)
    if told is None:
        return None
    last = len(space.shape) - 1
    if not isinstance(told, int | np.integer) or told not in (last - 2, last, -1):
        raise UnsupportedEnvError(
            f"{where}.channel_axis={told!r:.60} must be {last - 2} or {last}, the axis of an "
            f"image's channels; set it to one of them, or leave it out"
        )
    return int(told) % (last + 1)


def _channel_axis(where: str, space: Box) -> int:
    """The first or the last axis of an image's three, as `channel_axis` says, or else its shape.

    The axis that is unlike two others of one size; if there is none, the smaller one. A stack of
    images has one more axis, before these.
    """
    first, middle, last = space.shape[-3:]
    if (told := _told_axis(where, space)) is not None:
        return told
    is_first = first != middle and (middle == last or first < last)
    return len(space.shape) - (3 if is_first else 1)


def _is_picture(where: str, space: Box) -> bool:
    """Whether numbers that are no pixels have an image's shape, or a stack's."""
    if len(space.shape) == 2:
        return min(space.shape) >= _MIN_GREY
    if len(space.shape) not in (3, 4):
        return False
    axis = _channel_axis(where, space)
    sides = space.shape[-2:] if axis == len(space.shape) - 3 else space.shape[-3:-1]
    is_told = _told_axis(where, space) is not None
    return is_told or (space.shape[axis] in _PICTURE_CHANNELS and min(sides) >= _MIN_PICTURE)


def _reading(env_id: str, where: str, space: Box, leaf: Leaf) -> str:
    """What was assumed of observations, and how to have them read otherwise; "" if it is plain."""
    axes = len(space.shape)
    what = f"{env_id}: {where.replace('_space', 's', 1)} {space.shape} of {space.dtype}"
    if axes < 2:
        return ""
    if leaf.kind != "image":
        remedy = "as an image they need three axes, [H, W, C] or [C, H, W]"
        if axes == 2:
            remedy = (
                f"as a grey image they need sides of {_MIN_GREY} and more, or three axes and a "
                f"channel_axis"
            )
        if axes in (3, 4) or (axes == 2 and _is_picture(where, space)):
            remedy = (
                "if they are images, give their space one pair of finite bounds, such as 0 and 1"
            )
        if axes in (3, 4):
            remedy += (
                f", and set {where}.channel_axis to {axes - 3} or {axes - 1}, the axis of the "
                f"channels"
            )
        return f"{what} are flattened to a vector of {leaf.shape[0]} numbers; {remedy}"
    if axes == 2 and not _is_pixels(space):
        _, height, width = leaf.shape
        return (
            f"{what} are read as a grey image of {height}x{width} pixels; as a vector they need "
            f"one axis"
        )
    if axes == 2 or _told_axis(where, space) is not None:
        return ""
    axis = _channel_axis(where, space)
    channels, (_, height, width) = space.shape[axis], leaf.shape
    if channels in _PICTURE_CHANNELS and channels < min(height, width):
        return ""
    is_last, stack = axis == axes - 1, f"{space.shape[0]} times " if axes == 4 else ""
    return (
        f"{what} are read as {stack}{channels} channels of {height}x{width} pixels, since the "
        f"{'last' if is_last else 'second' if stack else 'first'} axis looks like that of the "
        f"channels; if it is the other one, set {where}.channel_axis = "
        f"{axis - 2 if is_last else axis + 2}, or = {axis} to say that this is right"
    )


# --- actions ---


class ActionLayout:
    """From rows of actions to what the environment's action space has.

    Attributes:
        leaves: of the space, in the order in which a row has them.
        spec: what a row has.
        numbers: from the policy's numbers [N, D] to the environment's, not rounded yet.

    Raises:
        UnsupportedEnvError: the space is not supported, or has a choice that is too large.
    """

    def __init__(self, env_id: str, space: Space[Any], bounds: Bounds = "clip") -> None:
        self.space = space
        self.leaves = list(_leaf_spaces(env_id, space, "action_space", space))
        boxes = [leaf for _, leaf in self.leaves if isinstance(leaf, Box)]
        self.spec = ActionSpec(
            choices=tuple(size for _, leaf in self.leaves for size in choice_sizes(leaf)),
            low=tuple(_bound(bound) for box in boxes for bound in box.low.reshape(-1).tolist()),
            high=tuple(_bound(bound) for box in boxes for bound in box.high.reshape(-1).tolist()),
        )
        for path, leaf in self.leaves:
            if max(choice_sizes(leaf), default=0) > _MAX_ACTIONS:
                raise UnsupportedEnvError(
                    f"{env_id}: action_space{_keys(path)} is {in_short(leaf)}, and a choice has at "
                    f"most {_MAX_ACTIONS} values; make it several choices, or a number, in a Box"
                )
        self.numbers = _numbers_of(self.spec, bounds)
        self._sizes = np.array(self.spec.choices)
        self._table: list[Any] | None = None
        if isinstance(space, Discrete) and space.n <= _MAX_TABLE:
            # As the space samples them: np.int64, mostly, on which Gymnasium's users call `item`.
            self._table = list((np.arange(space.n) + space.start).astype(space.dtype))

    def own(self, actions: Actions) -> list[Any]:
        """The environments' own actions. Raises ValueError as `VecEnv.send` does."""
        if self._table is not None:
            indices = actions.tolist()
            if min(indices) < 0 or max(indices) >= len(self._table):
                raise ValueError(f"actions {indices} must lie in 0..{len(self._table) - 1}")
            return [self._table[index] for index in indices]
        rows = actions.reshape(len(actions), -1)
        num_choices = len(self._sizes)
        choices, numbers = rows[:, :num_choices], rows[:, num_choices:]
        if not ((choices >= 0) & (choices < self._sizes)).all():
            raise ValueError(
                f"actions {in_short(choices.tolist())} must lie in 0..n-1, where n is "
                f"{in_short(self.spec.choices)}"
            )
        if not np.isfinite(numbers).all():
            raise ValueError(f"actions {in_short(numbers.tolist())} must be finite numbers")
        columns = list(self._columns(choices.astype(np.int64), self.numbers(numbers)))
        return [_built(self.space, iter(columns), i) for i in range(len(rows))]

    def _columns(self, choices: NDArray[np.int64], numbers: NDArray[np.float64]) -> Iterator[Array]:
        """The actions of each leaf, [N, *shape]."""
        for _, leaf in self.leaves:
            shape = (len(choices), *(leaf.shape or ()))
            if isinstance(leaf, Box):
                size = int(np.prod(leaf.shape))
                own_numbers, numbers = numbers[:, :size].reshape(shape), numbers[:, size:]
                yield _within(own_numbers, leaf).astype(leaf.dtype)
            else:
                size = len(choice_sizes(leaf))
                own_choices, choices = choices[:, :size].reshape(shape), choices[:, size:]
                yield (own_choices + start_of(leaf)).astype(leaf.dtype)


def _bound(bound: float) -> float:
    return float(bound) if abs(bound) < NO_BOUND else float(np.copysign(np.inf, bound))


def _built(space: Space[Any], columns: Iterator[Array], i: int) -> Any:
    """The action of environment i, of the same structure as the space."""
    if isinstance(space, Dict):
        return {key: _built(part, columns, i) for key, part in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(_built(part, columns, i) for part in space.spaces)
    column = next(columns)
    return column[i] if isinstance(space, Discrete) else column[i, ...]  # of no axes: an array too


class Ranges(NamedTuple):
    """Where the policy's numbers lead, [D] each: `half` is 1 unless there are two bounds."""

    low: NDArray[np.float64]  # -inf: there is none
    high: NDArray[np.float64]
    middle: NDArray[np.float64]  # where 0 leads
    half: NDArray[np.float64]

    @property
    def has_both(self) -> NDArray[np.bool_]:
        has_both: NDArray[np.bool_] = np.isfinite(self.low) & np.isfinite(self.high)
        return has_both

    @property
    def limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the policy's numbers; what is beyond is clipped."""
        least = np.where(self.has_both, -1, self.low - self.middle)
        return least, np.where(self.has_both, 1, self.high - self.middle)


def ranges_of(spec: ActionSpec) -> Ranges:
    low, high = np.array(spec.low), np.array(spec.high)
    has_both = np.isfinite(low) & np.isfinite(high)
    # With one bound 0 leads to 0, or else to a unit within the bound: beyond it all that is drawn
    # would be the bound itself, and nothing be learned.
    middle, half = np.clip(0, low + 1, high - 1), np.ones_like(low)
    middle[has_both] = (low[has_both] + high[has_both]) / 2
    half[has_both] = (high[has_both] - low[has_both]) / 2
    return Ranges(low, high, middle, half)


def _numbers_of(spec: ActionSpec, bounds: Bounds) -> Callable[[Array], NDArray[np.float64]]:
    """What turns the policy's numbers [N, D] into the environment's: see `ActionSpec.low`.

    An exported network does the same (sfrl/graph.py).
    """
    ranges = ranges_of(spec)
    low, high, middle, half = ranges
    has_low, has_high, has_both = np.isfinite(low), np.isfinite(high), ranges.has_both
    least, most = ranges.limits

    def clipped(raw: Array) -> NDArray[np.float64]:
        own: NDArray[np.float64] = middle + half * raw.clip(least, most)
        return own

    def squashed(raw: Array) -> NDArray[np.float64]:
        wide = raw.astype(np.float64)
        softplus = np.logaddexp(0, wide)
        one_sided = np.where(has_low, low + softplus, np.where(has_high, high - softplus, wide))
        return np.where(has_both, middle + half * np.tanh(wide), one_sided)

    return clipped if bounds == "clip" else squashed


def _within(numbers: NDArray[np.float64], space: Box) -> NDArray[np.float64]:
    """Rounded if the space is of whole numbers, and so that its dtype keeps them within it."""
    if np.issubdtype(space.dtype, np.floating):
        largest = float(np.finfo(str(space.dtype)).max)
    else:
        numbers, largest = np.rint(numbers), _MAX_WHOLE
    low = space.low.astype(np.float64).clip(-largest, largest)
    high = space.high.astype(np.float64).clip(-largest, largest)
    return numbers.clip(low, high)
