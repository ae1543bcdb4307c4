"""This program's log, and that of others: an environment may set up logging as it likes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_OWN = ("envs", "sfrl")


class _OwnLogger(logging.Logger):
    """Stays on: `dictConfig`, called by a library, disables all loggers that it does not name."""

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def handle(self, record: logging.LogRecord) -> None:
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

    Ours do so at the loggers `envs` and `sfrl`, for the root's handlers an environment may replace.
    """
    root, others = logging.getLogger(), _Others(handlers)
    own = [own_logger(name) for name in _OWN]
    levels = [logger.level for logger in own]
    for logger in own:
        logger.setLevel(logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
    root.addHandler(others)
    try:
        yield
    finally:
        root.removeHandler(others)
        for logger, level in zip(own, levels, strict=True):
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)


class _Others(logging.Handler):
    """Hands on what is not ours: a root handler gets everything."""

    def __init__(self, handlers: tuple[logging.Handler, ...]) -> None:
        super().__init__(logging.WARNING)
        self._handlers = handlers

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] not in _OWN:
            for handler in self._handlers:
                handler.handle(record)
