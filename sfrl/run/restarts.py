"""When a rollout worker that failed is started again: the oftener it fails, the later."""

from __future__ import annotations

import re
from collections import deque

WINDOW_S = 3600.0
STEADY_S = 10.0  # one that has worked so long is well: the next failure is a first one
MAX_DELAY_S = 60.0
MAX_REPEATS = 3  # of one failure, before anything is learned: it will not pass
_VARYING = re.compile(r"0x[0-9a-f]+|\d+")  # addresses, numbers of processes, times
# The last frame of a traceback, and the type of the error that was raised there.
_RAISED = re.compile(r'File "(.+)", line (\d+).*\n(?:(?! *File ") .*\n)*([\w.]+)')


class RestartHistory:
    """The failures of one rollout worker within the last hour. Times are the monotonic clock's.

    The first restart follows at once, as after a single accident. If that one fails soon as well,
    something lasts: it is given 1, 2, 4, ... seconds to pass.

    Attributes:
        num_repeats: how often in a row it has now failed in the same way.
    """

    def __init__(self) -> None:
        self._failures: deque[tuple[float, str]] = deque()  # when, and why
        self._num_setbacks = 0  # failures in a row, each soon after a restart
        self._was_restarted = False
        self._worked_since_s: float | None = None  # the first decision after the last restart
        self.num_repeats = 0
        self._last_reason: object = None

    @property
    def causes(self) -> list[str]:
        """Oldest first."""
        return [why for _, why in self._failures]

    def failed(self, now_s: float, why: str) -> float:
        """Note a failure; returns for how many seconds the restart is to wait."""
        reason = _way(why)
        self.num_repeats = self.num_repeats + 1 if reason == self._last_reason else 1
        self._last_reason = reason
        while self._failures and now_s - self._failures[0][0] > WINDOW_S:
            self._failures.popleft()
        self._failures.append((now_s, why))
        worked_s = 0.0 if self._worked_since_s is None else now_s - self._worked_since_s
        is_setback = self._was_restarted and worked_s < STEADY_S
        self._num_setbacks = self._num_setbacks + 1 if is_setback else 0
        if self._num_setbacks == 0:
            return 0.0
        return float(min(2 ** (self._num_setbacks - 1), MAX_DELAY_S))

    def restarted(self) -> None:
        self._was_restarted, self._worked_since_s = True, None

    def worked(self, now_s: float) -> None:
        """It has made a decision since it was restarted."""
        if self._worked_since_s is None:
            self._worked_since_s = now_s


def _way(why: str) -> object:
    """Equal for failures of the same way.

    That is an error of the same type, raised in the same line, whatever its text: it may show
    observations, paths, names. What has no traceback has a text that differs in numbers alone.
    """
    raised = _RAISED.findall(why)
    return raised[-1] if raised else _VARYING.sub("#", why)
