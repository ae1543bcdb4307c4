"""What an environment must keep to, checked at every step: the first place where a fault shows."""

from typing import Literal, NamedTuple, SupportsFloat

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from sfrl.envs.logs import own_logger

log = own_logger(__name__)

# The types that come, so that most checks are one look into a set.
_NUMBERS = frozenset({float, int, np.float64, np.float32})
_OTHER_NUMBERS = (int, float, np.integer, np.floating, np.bool_)
_BOOLS = frozenset({bool, np.bool_})
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
    """The rules of one environment's copies. The checks of a step take 1 us for each of them.

    Args:
        space: of the observations, as the environment declares them.
    """

    def __init__(self, env_id: str, space: Box, num_actions: int) -> None:
        self.env_id = env_id
        self._num_actions = num_actions
        self._space = space
        self._shape, self._dtype = space.shape, space.dtype
        is_bounded = bool(space.bounded_below.any() or space.bounded_above.any())
        low, high = space.low, space.high
        if space.dtype == np.uint8:  # whose axes change places: the widest bounds for all pixels
            low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
            is_bounded = bool(low.any() or (high < np.iinfo(np.uint8).max).any())
        else:  # rounded as observations are, or one that is at its bound would be beyond it
            with np.errstate(over="ignore"):  # no float32 is beyond those that become infinite
                low, high = low.astype(np.float32), high.astype(np.float32)
        self._bounds = (low, high) if is_bounded else None
        # Pixels stay uint8, where a larger integer would wrap around. All else becomes float32.
        self._casting: Literal["safe", "same_kind"] = (
            "safe" if space.dtype == np.uint8 else "same_kind"
        )
        self._has_warned = False
        self._known_spaces: dict[int, object] = {}  # copy -> its space, found to be the first's

    def observation(self, observation: object, env: int, step: int) -> NDArray[np.generic]:
        """The observation of copy `env` at `step`. Raises EnvError unless it fits the space."""
        try:
            array: NDArray[np.generic] = np.asarray(observation)
        except ValueError as error:  # lists of different lengths
            raise self.error(f"its observation is no array: {error}", env, step) from error
        if array.shape == self._shape and (
            array.dtype is self._dtype or np.can_cast(array.dtype, self._dtype, self._casting)
        ):
            return array
        raise self.error(
            f"its observation is {array.dtype}{list(array.shape)}, and its observation_space "
            f"says {self._dtype}{list(self._shape)}",
            env,
            step,
        )

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

    def spaces(self, space: object, actions: Discrete, env: int) -> None:
        """Raises EnvError if a copy's spaces are not those of the first, now that it resets."""
        if self._known_spaces.get(env) is space and actions.n == self._num_actions:
            return  # comparing two of them takes longer than a step
        self._known_spaces[env] = space
        if space != self._space:
            raise EnvError(
                f"{self.env_id}, env {env}: its observation_space is {space} and was {self._space};"
                f" it must stay"
            )
        if actions.n != self._num_actions:
            raise EnvError(
                f"{self.env_id}, env {env}: its action_space has {actions.n} actions and had "
                f"{self._num_actions}; it must stay"
            )

    def bounds(self, observations: NDArray[np.uint8 | np.float32], step: int) -> None:
        """Warn, once, of observations [N, ...] outside the space: networks do not mind."""
        if self._bounds is None or self._has_warned or (step > _ALL_BOUNDS and step % _SOME_BOUNDS):
            return
        low, high = (bound.reshape(-1) for bound in self._bounds)
        observations = observations.reshape(len(observations), -1)
        outside = (observations < low) | (observations > high)
        if outside.any():
            self._has_warned = True
            env, place = np.argwhere(outside)[0].tolist()
            log.warning(
                "%s, env %d, step %d: element %d of its observation is %g, outside its "
                "observation_space, which says %g to %g (told once)",
                *(self.env_id, env, step, place, observations[env, place], low[place], high[place]),
            )

    def error(self, problem: str, env: int, step: int) -> EnvError:
        return EnvError(f"{self.env_id}, env {env}, step {step}: {problem}")


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
