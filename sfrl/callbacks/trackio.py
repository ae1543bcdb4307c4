"""Trackio, dashboards on this machine: --log-to=trackio."""

from __future__ import annotations

from sfrl.callbacks.background import BackgroundLogger, id_of
from sfrl.callbacks.callback import RunStart
from sfrl.records.metrics import Record


class TrackioLogger(BackgroundLogger):
    """`trackio show --project sfrl` shows the runs. Trackio's variables count: TRACKIO_DIR says
    where they are kept, TRACKIO_SPACE_ID where they are sent."""

    def connect(self, run: RunStart) -> None:
        import trackio

        config = {**run.settings, "starts": run.starts}
        options = {"resume": "allow", "embed": False}
        # It goes on with any run of this name: folders elsewhere may have the same.
        name = f"{run.run_dir.name}-{id_of(run)[:6]}"
        self._run = trackio.init("sfrl", name, run.env, config=config, **options)

    def send(self, record: Record) -> None:
        numbers = {name: value for name, value in record.items() if value is not None}
        self._run.log(numbers, step=record["env_frames"])

    def finish(self) -> None:
        self._run.finish()
