"""`--prometheus=PORT`: the newest record, for Prometheus to fetch from this machine alone.

Imported only by runs with the setting. A thread waits for requests, and nothing waits for it.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sfrl.callbacks.callback import Callback, RunStart
from sfrl.envs.names import is_installed
from sfrl.records.metrics import Record
from sfrl.settings.config import ConfigError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

HOST = "127.0.0.1"


def check(port: int) -> None:
    """Raises ConfigError if it cannot be served: no package, or the port is taken."""
    if not is_installed("prometheus_client"):
        raise ConfigError(
            f'prometheus={port} needs prometheus_client: pip install "sfrl[prometheus]"'
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server has it
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"prometheus={port} cannot be opened on {HOST}: {error.strerror}; choose another "
                f"port above 1023, or 0 for none"
            ) from error


class Exporter(Callback):
    """While the run goes on, http://127.0.0.1:PORT/metrics has the newest record.

    Each number is a gauge by the name of docs/metrics.md, with `sfrl_` before it and `_` for what
    Prometheus has not: `sfrl_rollout_env_step`. Of what is null there is no line.
    """

    def __init__(self, port: int) -> None:
        """Raises ConfigError if it cannot be served, as `check` does."""
        check(port)
        self._port = port
        self._record: Record = {}

    def begin(self, run: RunStart) -> None:
        """Raises ConfigError if the port has been taken since."""
        from prometheus_client import CollectorRegistry, start_http_server

        system = str(run.settings["system"])
        self._run = {"env": run.env, "system": system, "folder": str(run.run_dir)}
        registry = CollectorRegistry()
        registry.register(self)
        # The thread inherits the mask: signals are the main thread's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._server, self._thread = start_http_server(self._port, HOST, registry)
        except OSError as error:
            raise ConfigError(
                f"prometheus={self._port} cannot be opened on {HOST}: {error.strerror}"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def report(self, record: Record) -> None:
        self._record = record

    def collect(self) -> Iterator[Metric]:
        """For the registry, at each request, in a thread of the server's."""
        from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

        yield InfoMetricFamily("sfrl_run", "The run.", self._run)
        values = {
            re.sub(r"\W", "_", f"sfrl_{name}", flags=re.ASCII): value
            for name, value in self._record.items()
        }
        for name, value in values.items():
            if value is not None:
                yield GaugeMetricFamily(name, "See docs/metrics.md.", value)

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
