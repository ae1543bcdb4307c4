"""Processes that an environment forks, and that come back out of it: they must end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sfrl.envs.logs import own_logger

log = own_logger(__name__)

_tell: Callable[[str], object] | None = None  # None: forks are not noticed
_is_fork = False


@contextmanager
def forks_noticed(tell: Callable[[str], object] = log.warning) -> Iterator[None]:
    """In the block a fork of this process knows that it is one.

    Args:
        tell: called in the fork, with the text, when it must end.
    """
    global _tell, _is_fork
    _tell, _is_fork = tell, False
    try:
        yield
    finally:
        _tell = None


def _become_a_fork() -> None:
    global _is_fork
    _is_fork = _tell is not None


os.register_at_fork(after_in_child=_become_a_fork)


def end_if_forked(error: BaseException | None = None) -> None:
    """For where environments return, or have raised `error`.

    A fork that goes on would be a second worker, with the same environments, slots and queues.
    """
    if _is_fork and _tell is not None:
        what = "".join(traceback.format_exception(error)) if error else "it returned"
        _tell(f"a process that an environment forked has left the environment: {what}")
        for file in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a pipe without a reader, a closed file
                file.flush()
        os._exit(1)
