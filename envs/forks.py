"""Processes that an environment forks, and that come back out of it: they must end."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress

from envs.logs import own_logger

log = own_logger(__name__)

_is_fork = False


def notice_forks() -> None:
    """From now on a fork of this process knows that it is one."""
    os.register_at_fork(after_in_child=_become_a_fork)


def _become_a_fork() -> None:
    global _is_fork
    _is_fork = True


def end_if_forked(error: BaseException | None = None) -> None:
    """For where environments return, or have raised `error`.

    A fork that goes on would be a second worker, with the same environments, slots and queues.
    """
    if _is_fork:
        what = "".join(traceback.format_exception(error)) if error else "it returned"
        log.warning("a process that an environment forked has left the environment: %s", what)
        for file in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a pipe without a reader, a closed file
                file.flush()
        os._exit(1)
