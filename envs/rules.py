"""What an environment must keep to, checked at every step: the first place where a fault shows."""

from typing import Any, Literal, NamedTuple, SupportsFloat

import numpy as np
from gymnasium.spaces import Box, MultiBinary, Space
from numpy.typing import ArrayLike, NDArray

from sfrl.envs.logs import own_logger
from sfrl.envs.spaces import Part, in_short, where_is

log = own_logger(__name__)

# The types that come, so that most checks are one look into a set.
_NUMBERS = frozenset({float, int, np.float64, np.float32})
_OTHER_NUMBERS = (int, float, np.integer, np.floating, np.bool_)
_BOOLS = frozenset({bool, np.bool_})
PARTS = {  # of what a reset and a step return
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}
_ALL_BOUNDS, _SOME_BOUNDS = 1000, 64  # so many first steps, then every 64th


class EnvError(RuntimeError):
    """An environment broke the rules; the text names it, the copy of it, the step and the rule."""


class NonFiniteError(EnvError):
    """It gave NaN or infinity, where that is to end the run."""


class Outcome(NamedTuple):
    """What a step came to, beside its observation."""

    reward: float
    terminated: bool
    truncated: bool


class Rules:
    """The rules of one environment's copies. The checks of a step take 1 us for each of them."""

    def __init__(self, env_id: str, space: Space[Any], actions: Space[Any]) -> None:
        self.env_id = env_id
        self._spaces = {"observation_space": space, "action_space": actions}
        self._known_spaces: dict[tuple[int, str], object] = {}  # found to be the first copy's

    def outcome(
        self, reward: object, terminated: object, truncated: object, env: int, step: int
    ) -> Outcome:
        """Raises EnvError unless the reward is a number and the other two are booleans.

        Arrays and tensors of one element are what is in them.
        """
        if type(reward) not in _NUMBERS and not isinstance(reward, _OTHER_NUMBERS):
            reward = self._number(reward, env, step)
        if type(terminated) not in _BOOLS:
            terminated = self._bool("terminated", terminated, env, step)
        if type(truncated) not in _BOOLS:
            truncated = self._bool("truncated", truncated, env, step)
        return Outcome(reward, terminated, truncated)  # type: ignore[arg-type]  # as seen above

    def _number(self, reward: object, env: int, step: int) -> float:
        plain = _plain(reward)
        if isinstance(plain, _OTHER_NUMBERS):
            return float(plain)
        problem = f"its reward is {reward!r:.60}, and must be a number; return float(reward)"
        raise self.error(problem, env, step)

    def _bool(self, name: str, value: object, env: int, step: int) -> bool:
        plain = _plain(value)
        if isinstance(plain, bool):
            return plain
        problem = f"its {name} is {value!r:.60}, not a bool; return bool({name})"
        raise self.error(problem, env, step)

    def spaces(self, env: int, **spaces: Space[Any]) -> None:
        """Raises EnvError if a copy's spaces are not those of the first, now that it resets."""
        for name, space in spaces.items():
            if self._known_spaces.get((env, name)) is space:
                continue  # comparing two of them takes longer than a step
            self._known_spaces[env, name] = space
            if space != self._spaces[name]:
                raise EnvError(
                    f"{self.env_id}, env {env}: its {name} is {space} and was "
                    f"{self._spaces[name]}; it must stay"
                )

    def parts(self, call: Literal["reset", "step"], result: object, env: int, step: int) -> None:
        """Raises EnvError unless a reset or step returned as many as Gymnasium says."""
        parts = PARTS[call]
        if not isinstance(result, tuple | list) or len(result) != len(parts):
            problem = f"its {call} returned {in_short(result)}, and must return {', '.join(parts)}"
            raise self.error(problem, env, step)

    def error(self, problem: str, env: int, step: int) -> EnvError:
        return EnvError(f"{self.env_id}, env {env}, step {step}: {problem}")


def not_finite(problem: str, *values: ArrayLike) -> str:
    """The problem, and why there may be infinity among the values."""
    is_infinite = any(np.isinf(value).any() for value in values)
    return f"{problem} (in float32 all beyond 3.4e38 is infinite)" if is_infinite else problem


class LeafRules:
    """The rules of one leaf of the observations, and its way from there to the network."""

    def __init__(self, rules: Rules, part: Part) -> None:
        self.name = part.leaf.name
        self.is_float = part.leaf.dtype == "float32"
        self._rules, self._part, space = rules, part, part.space
        self._shape, self._dtype = space.shape or (), space.dtype
        self._path, self._view = part.path, part.view
        self._sizes = np.array(part.leaf.sizes)
        self._is_binary = isinstance(space, MultiBinary)
        self._bounds = _bounds_of(part) if isinstance(space, Box) else None
        # Pixels stay uint8, where a larger integer would wrap around. All else becomes float32.
        self._casting: Literal["safe", "same_kind"] = (
            "safe" if space.dtype == np.uint8 else "same_kind"
        )
        self._has_warned = False

    def read(self, observation: Any, env: int, step: int) -> NDArray[Any]:
        """The leaf of copy `env`'s observation at `step`. Raises EnvError unless it fits."""
        if self._path:
            observation = self._find(observation, env, step)
        try:
            array: NDArray[Any] = np.asarray(observation)
        except ValueError as error:  # lists of different lengths
            where = self._part.where
            raise self._rules.error(f"its {where} is no array: {error}", env, step) from error
        if array.shape != self._shape or not (
            array.dtype is self._dtype or np.can_cast(array.dtype, self._dtype, self._casting)
        ):
            raise self._misfit(f"{array.dtype}{list(array.shape)}", env, step)
        if self._is_binary and not ((array == 0) | (array == 1)).all():
            raise self._misfit(in_short(array.tolist()), env, step)
        if self._view is None:
            return array
        viewed = self._view(array)
        if self._sizes.size and not ((viewed >= 0) & (viewed < self._sizes)).all():
            raise self._misfit(in_short(array.tolist()), env, step)
        return viewed

    @property
    def is_plain(self) -> bool:
        """Whether the observation is this array, as it is: see `read_all`."""
        return not self._path and self._view is None and not self._is_binary

    def read_all(self, observations: Any, num_envs: int, step: int) -> NDArray[Any]:
        """A plain leaf of all copies, [N, *shape], as an array of its own."""
        array: NDArray[Any] = np.asarray(observations)
        if array.shape != (num_envs, *self._shape) or not np.can_cast(
            array.dtype, self._dtype, self._casting
        ):
            raise self._misfit(f"{array.dtype}{list(array.shape[1:])}", 0, step)
        return np.array(array, self._part.leaf.dtype, order="C")

    def _find(self, observation: Any, env: int, step: int) -> Any:
        found = observation
        for depth, key in enumerate(self._path):
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError) as error:
                where = where_is(self._path[:depth])
                problem = (
                    f"its {where} is {in_short(found)}, without {key!r}, and its "
                    f"observation_space has {self._part.where}"
                )
                raise self._rules.error(problem, env, step) from error
        return found

    def _misfit(self, what: str, env: int, step: int) -> EnvError:
        space = self._part.space
        says = f"{self._dtype}{list(self._shape)}" if isinstance(space, Box) else in_short(space)
        return self._rules.error(
            f"its {self._part.where} is {what}, and its observation_space says {says}", env, step
        )

    def bounds(self, observations: NDArray[Any], step: int) -> None:
        """Warn, once, of observations [N, ...] outside the space: networks do not mind."""
        if self._bounds is None or self._has_warned or (step > _ALL_BOUNDS and step % _SOME_BOUNDS):
            return
        low, high = self._bounds
        observations = observations.reshape(len(observations), -1)
        outside = (observations < low) | (observations > high)
        if outside.any():
            self._has_warned = True
            env, place = np.argwhere(outside)[0].tolist()
            log.warning(
                "%s, env %d, step %d: element %d of its %s is %g, outside its "
                "observation_space, which says %g to %g (told once)",
                *(self._rules.env_id, env, step, place, self._part.where),
                *(observations[env, place], low[place], high[place]),
            )


def _bounds_of(part: Part) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Those of the leaf's numbers, flattened; None if there are none."""
    assert isinstance(part.space, Box)
    low, high = part.space.low, part.space.high
    if part.space.dtype == np.uint8:  # whose axes change places: the widest bounds for all pixels
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
        is_bounded = bool(low.any() or (high < np.iinfo(np.uint8).max).any())
    else:  # rounded as observations are, or one that is at its bound would be beyond it
        is_bounded = bool(part.space.bounded_below.any() or part.space.bounded_above.any())
        with np.errstate(over="ignore"):  # no float32 is beyond those that become infinite
            low, high = low.astype(np.float32), high.astype(np.float32)
    return (low.reshape(-1), high.reshape(-1)) if is_bounded else None


def _plain(value: object) -> object:
    """What is in an array or tensor of one element; what is none, as it is."""
    try:
        if hasattr(value, "item"):
            return value.item()
        return float(value) if isinstance(value, SupportsFloat) else value
    except (
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ):  # NumPy's, torch's, JAX's, of more elements
        return value
