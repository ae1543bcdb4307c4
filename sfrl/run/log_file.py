"""The run's log.txt."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sfrl.envs.logs import logging_to
from sfrl.records import checkpoint, run_folder
from sfrl.run.crew import WorkerError
from sfrl.show.display import Display
from sfrl.show.output import ESCAPE

MAX_BYTES = 20 << 20  # of log.txt; then it becomes log.txt.1, whose lines before are lost


def reason_of(error: BaseException) -> str:
    """Of a fault in the trainer itself with its place, as Python tells it."""
    if isinstance(error, (WorkerError, checkpoint.CheckpointError, ValueError, OSError)):
        return str(error)
    return "".join(traceback.format_exception(error))


@contextmanager
def run_log(path: Path, display: Display, is_ours: Callable[[], bool]) -> Iterator[LogFile]:
    """Log lines go to the run's log file and to the terminal while the run lasts."""
    file_handler = LogFile(path, is_ours)
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    try:
        with logging_to(file_handler, display.log_handler):
            yield file_handler
    finally:
        file_handler.end()


class LogFile(logging.Handler):
    """Loses lines where the disk is full; the terminal has them. Comes back if it is deleted.

    Not logging's RotatingFileHandler: that one follows links, and writes on into a deleted file.
    """

    def __init__(self, path: Path, is_ours: Callable[[], bool]) -> None:
        super().__init__()
        self._path = path.absolute()
        self._is_ours = is_ours
        self._file = run_folder.open_to_append(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode("utf-8", ESCAPE)
            self._rotate(len(line))
            self._file = run_folder.reopened_to_append(self._path, self._file, self._is_ours)
            self._file.write(line)
        except OSError:
            pass
        except Exception:  # as logging's own handlers do: a faulty line must not end the run
            self.handleError(record)

    def _rotate(self, size: int) -> None:
        """Move the file away if so many bytes more are too many: then another one begins."""
        descriptor = self._file.fileno()
        if os.fstat(descriptor).st_size + size <= MAX_BYTES:
            return
        if run_folder.is_at(self._path, descriptor) and self._is_ours():
            with suppress(OSError):  # rather a large log than none
                os.replace(self._path, self._path.with_name(run_folder.OLDER_LOG))

    def note(self, text: str) -> None:
        """A line for this file alone."""
        self.handle(logging.makeLogRecord({"msg": text}))

    def end(self) -> None:
        """If nothing could be written no file is left.

        Not `close`, which logging.config.dictConfig, called by an environment, calls on all there
        are.
        """
        descriptor = self._file.fileno()
        if os.fstat(descriptor).st_size == 0 and run_folder.is_at(self._path, descriptor):
            self._path.unlink()
        self._file.close()
        self.close()
