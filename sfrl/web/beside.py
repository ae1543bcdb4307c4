"""`--web`: the page of a run, beside the training, in a process of its own.

It serves what `sfrl web` does, for this run alone, and ends with the trainer, which imports nothing
of it.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
from contextlib import ExitStack
from multiprocessing import connection
from pathlib import Path

from sfrl.callbacks.callback import Callback, RunStart
from sfrl.envs.logs import own_logger, printable
from sfrl.records import run_folder
from sfrl.records.metrics import Record
from sfrl.run.apart import Apart, EndedError, apart
from sfrl.run.child import die_with_parent
from sfrl.run.signals import STOP_SIGNALS
from sfrl.settings.config import Config, ConfigError
from sfrl.web import listening

log = own_logger(__name__)

_NICENESS = 10
_TOLD_S = 1.0  # for what a process has told that has ended


class Beside(Callback):
    """Has the run shown where `web` says, until it ends."""

    def __init__(self, config: Config) -> None:
        """See that it can be shown there.

        Raises:
            ValueError: a package is missing, or the port is taken.
        """
        self._web, self._address = config.web, config.web_address
        listening.check_installed(f"web={config.web}")
        self._listen().close()
        self._started_in = run_folder.started_in()
        self._stack = ExitStack()  # ends the process
        self._child: Apart | None = None

    def _listen(self) -> socket.socket:
        try:
            return listening.listen(*self._address)
        except OSError as error:
            raise ConfigError(
                f"web={self._web} cannot be listened on: {error.strerror}; choose another port "
                f'above 1023 (0 takes a free one), an address of this machine, or "" for no page'
            ) from error

    def begin(self, run: RunStart) -> None:
        """Raises ConfigError if the port has been taken since."""
        self._run_dir = run.run_dir
        with self._listen() as sock:
            token = listening.token_for(sock)
            url = listening.url_of(sock, self._address[0], token)
            what = "sfrl.web.beside:serve", "web", "shows the run in the browser"
            given = str(run.run_dir), sock.fileno(), self._address[0], token
            try:
                self._child = self._stack.enter_context(
                    apart(*what, *given, inherited=[sock.fileno()])
                )
            except (MemoryError, OSError) as error:  # no process, or no file left
                log.warning("not shown in the browser: %s", error)
                return
        log.info("shown in the browser at %s#/run?run=.", url)

    def report(self, record: Record) -> None:
        """Its end is told of once."""
        if self._child is None or self._child.process.poll() is None:
            return
        try:
            self._child.receive(_TOLD_S)
        except EndedError as error:
            log.warning("not shown in the browser any more: the process %s", printable(str(error)))
        self._stack.close()
        self._child = None

    def end(self) -> None:
        self._stack.close()
        told = shlex.quote(str(run_folder.told(self._run_dir, self._started_in)))
        log.info("shown in the browser no more; sfrl web %s shows it again", told)


# --- in the child ---


def serve(
    _sender: connection.Connection,
    parent: int,
    run_dir: str,
    descriptor: int,
    host: str,
    token: str,
) -> None:
    """Until it is ended."""
    die_with_parent(parent)
    os.nice(_NICENESS)
    # They mean the trainer, whose end is to be seen; uvicorn would act on them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from sfrl.web import server

    with socket.socket(fileno=descriptor) as sock:
        server.serve(Path(run_dir), sock, host, token)
