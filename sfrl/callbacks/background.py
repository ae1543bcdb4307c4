"""A logger in a thread of its own: training waits for no network and ends for no failure of one."""

from __future__ import annotations

import hashlib
import queue
import threading

from sfrl.callbacks.callback import Callback, RunStart
from sfrl.envs.logs import own_logger
from sfrl.records.metrics import Record

log = own_logger(__name__)

MAX_WAITING = 10_000  # records that have not been taken: 14 hours of them
END_S = 15.0  # that the end of a run waits for what is left


class BackgroundLogger(Callback):
    """Derive from it, and define `connect`, `send` and `finish`, which may take their time.

    What they raise is told in the log, and the run goes on without the logger.
    """

    def connect(self, run: RunStart) -> None:
        """Called once, before all others."""

    def send(self, record: Record) -> None:
        """Called for each record."""

    def finish(self) -> None:
        """Called once, after the last record."""

    def tell(self, text: str) -> None:
        """A warning in the run's log. May be called in these three."""
        self._told.put(f"{type(self).__name__}: {text}")

    def begin(self, run: RunStart) -> None:
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, args=(run,), name=type(self).__name__, daemon=True
        )
        self._thread.start()

    def report(self, record: Record) -> None:
        if self._thread.is_alive() and self._records.qsize() < MAX_WAITING:
            self._records.put(record)
        self._log()

    def end(self) -> None:
        self._records.put(None)
        self._thread.join(END_S)
        self._log()
        if self._thread.is_alive():
            log.warning(
                "%s: has not taken all within %g s of the run's end; going on without it",
                *(type(self).__name__, END_S),
            )

    def _log(self) -> None:
        """In the trainer's thread, like every line of the log."""
        while not self._told.empty():
            log.warning("%s", self._told.get())

    def _work(self, run: RunStart) -> None:
        try:
            self.connect(run)
            while (record := self._records.get()) is not None:
                self.send(record)
            self.finish()
        except Exception as error:  # a service, its network and a user's code may raise anything
            text = " ".join(str(error).split())
            self.tell(f"{type(error).__name__}: {text:.500}; the run goes on without it")


def id_of(run: RunStart) -> str:
    """The same for every start of a run, and another for a later run in the same folder."""
    first = run.starts[0]
    text = f"{first['machine'].get('host')} {run.run_dir} {first['time']}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
