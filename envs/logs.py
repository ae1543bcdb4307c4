"""This program's log, and that of others: an environment may set up logging as it likes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = "files"
"""The attribute of our records that has the paths which the line names by itself."""

_OWN = "sfrl"
# What terminals obey: control characters without line ends and tabs, and those that change the
# direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with control characters as in Python's literals: a terminal would obey them.

    They come from files of others: settings, folders' names, what a damaged file is said to hold.
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class _OwnLogger(logging.Logger):
    """Stays on: `dictConfig`, called by a library, disables all loggers that it does not name."""

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def handle(self, record: logging.LogRecord) -> None:
        files = [str(each) for each in record.args or () if isinstance(each, Path)]
        record.__dict__[FILES] = files
        record.msg, record.args = printable(record.getMessage()), None
        if self.filter(record):
            self.callHandlers(record)


def own_logger(name: str) -> logging.Logger:
    """`logging.getLogger` for the modules of this program."""
    others = logging.getLoggerClass()
    logging.setLoggerClass(_OwnLogger)
    try:
        return logging.getLogger(name)
    finally:
        logging.setLoggerClass(others)


@contextmanager
def logging_to(*handlers: logging.Handler) -> Iterator[None]:
    """Our lines go to the handlers from INFO on, those of others from WARNING on, as in Python.

    Ours do so at the logger `sfrl`, for the root's handlers an environment may replace.
    """
    root, others = logging.getLogger(), _Others(handlers)
    own = own_logger(_OWN)
    level = own.level
    own.setLevel(logging.INFO)
    for handler in handlers:
        own.addHandler(handler)
    root.addHandler(others)
    try:
        yield
    finally:
        root.removeHandler(others)
        own.setLevel(level)
        for handler in handlers:
            own.removeHandler(handler)


class _Others(logging.Handler):
    """Hands on what is not ours: a root handler gets everything."""

    def __init__(self, handlers: tuple[logging.Handler, ...]) -> None:
        super().__init__(logging.WARNING)
        self._handlers = handlers

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] != _OWN:
            for handler in self._handlers:
                handler.handle(record)
