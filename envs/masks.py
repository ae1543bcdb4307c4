"""Which actions an environment allows: where it says so, and in what form."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeGuard

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple
from numpy.typing import NDArray

from sfrl.envs.names import UnsupportedEnvError
from sfrl.envs.spaces import ActionLayout, Path, choice_sizes, in_short, parts_of
from sfrl.envs.vec_env import ACTION_MASK, ActionSpec, Leaf

MaskPlace = Literal["observation", "method", "info"]
MASK_METHOD = "action_masks"  # of the environment, or of a wrapper
LATE_MASK = (
    f"its info has {ACTION_MASK!r}, and the first reset's had none; "
    f"give a mask with every reset and step"
)
_PLACES: dict[MaskPlace, str] = {
    "observation": f"the key {ACTION_MASK!r} in its observation_space",
    "method": f"a method {MASK_METHOD}()",
    "info": f"{ACTION_MASK!r} in its info",
}


def mask_place(
    env_id: str, env: gymnasium.Env[Any, Any], spec: ActionSpec
) -> Literal["observation", "method"] | None:
    """Where the environment says it, unless it does in `info`, which shows at a reset.

    Raises:
        UnsupportedEnvError: it does, and there is nothing to forbid.
    """
    if is_observed(env.observation_space):
        check_choices(env_id, spec, "observation")
        return "observation"
    if env.has_wrapper_attr(MASK_METHOD):
        check_choices(env_id, spec, "method")
        return "method"
    return None


def is_observed(space: Space[Any]) -> TypeGuard[Dict]:
    return isinstance(space, Dict) and ACTION_MASK in space.spaces


def check_choices(env_id: str, spec: ActionSpec, place: MaskPlace) -> None:
    """Raises UnsupportedEnvError if a mask at `place` would be of numbers alone."""
    if not spec.choices:
        raise UnsupportedEnvError(
            f"{env_id} has {_PLACES[place]}, and its actions are {spec.num_numbers} numbers of a "
            f"Box; a mask forbids choices, and no numbers: leave it out, or let action_space have "
            f"a Discrete, MultiDiscrete or MultiBinary part"
        )


def mask_leaf(spec: ActionSpec) -> Leaf:
    return Leaf(ACTION_MASK, "mask", (spec.num_logits,), "bool")


def read_mask(value: object, layout: ActionLayout) -> NDArray[np.bool_]:
    """An environment's mask as one array [num_logits].

    It is an array of all choices, one after the other, or has the structure of the action space.

    Raises:
        ValueError: it is none; the text says what it must be.
    """
    sizes = [sum(choice_sizes(leaf)) for _, leaf in layout.leaves if not isinstance(leaf, Box)]
    try:
        if _has_structure(value, layout.space):
            masks = list(_parts(value, layout.space))
        else:
            masks, sizes = [_flat(value)], [layout.spec.num_logits]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _refusal(value, layout.spec) from error
    if [mask.size for mask in masks] != sizes:
        raise _refusal(value, layout.spec)
    mask = np.concatenate(masks)
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind not in "iuf" or not ((mask == 0) | (mask == 1)).all():
        raise _refusal(value, layout.spec)
    return mask.astype(np.bool_)


def observed_masks(
    space: Space[Any], actions: Space[Any], path: Path = (ACTION_MASK,)
) -> Iterator[tuple[Path, Space[Any]]]:
    """The arrays of which `read_mask` makes one, in its order, where an observation has the mask.

    Args:
        space: of the mask.
        path: what leads to it in the observation.
    """
    if not isinstance(space, Dict | Tuple):
        yield path, space
        return
    parts = parts_of(space)
    inner = dict.fromkeys(parts, actions)  # as masks of the choices of one array
    if isinstance(actions, Dict | Tuple):
        inner = {key: part for key, part in parts_of(actions).items() if _has_choices(part)}
    for key, part in inner.items():
        yield from observed_masks(parts[key], part, (*path, key))


def _has_structure(value: object, space: Space[Any]) -> bool:
    if isinstance(space, Dict):
        return isinstance(value, Mapping)
    return isinstance(space, Tuple) and _is_nested(value)


def _is_nested(value: object) -> bool:
    """Whether it is a list or tuple of more than single numbers."""
    return isinstance(value, list | tuple) and any(
        isinstance(part, list | tuple | Mapping) or getattr(part, "ndim", 0) for part in value
    )


def _parts(value: Any, space: Space[Any]) -> Iterator[NDArray[Any]]:
    """The masks of all its leaves, except for numbers, which have none."""
    if isinstance(space, Dict | Tuple):
        if isinstance(space, Tuple) and len(value) != len(space.spaces):
            raise ValueError("a part is missing, or there is one too many")
        for key, part in parts_of(space).items():
            if _has_choices(part):
                yield from _parts(value[key], part)
    elif not isinstance(space, Box):
        yield _flat(value)


def _has_choices(space: Space[Any]) -> bool:
    if isinstance(space, Dict | Tuple):
        return any(map(_has_choices, parts_of(space).values()))
    return not isinstance(space, Box)


def _flat(value: Any) -> NDArray[Any]:
    if _is_nested(value):
        return np.concatenate([_flat(part) for part in value])
    return np.asarray(value).reshape(-1)


def _refusal(value: object, spec: ActionSpec) -> ValueError:
    return ValueError(
        f"its action mask is {in_short(value)}; it must be {spec.num_logits} booleans, or numbers 0"
        f" and 1, one for each value of each choice ({in_short(spec.choices)}), as one array or in "
        f"the structure of the action space"
    )


def without_choice(masks: NDArray[np.bool_], spec: ActionSpec) -> NDArray[np.bool_]:
    """Of masks [N, num_logits]: which choices have no legal action, [N, choices]."""
    starts = np.cumsum((0, *spec.choices[:-1]))
    return ~np.logical_or.reduceat(masks, starts, axis=1)
