"""The folder of a run while its trainer lives: locked, and made again if somebody deletes it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

from sfrl.envs.logs import own_logger
from sfrl.records import checkpoint, run_folder
from sfrl.records.start import Start, with_start
from sfrl.settings.algorithms import load_config, load_starts
from sfrl.settings.config import Config, ConfigError

log = own_logger(__name__)


class OwnedFolder:
    """One run's. Nobody writes into it once another run has begun in its place.

    Raises ConfigError if it is a run's to go on with, and its config.json is damaged.

    Attributes:
        is_ours: no other run has been found in it.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run_dir)
        self.is_ours = True
        self._config = config
        self._starts: list[Start] = []
        if config.resume and (self.path / "config.json").exists():
            self._starts = cast(list[Start], load_starts(self.path / "config.json"))
        self._unlock: Callable[[], object] = lambda: None

    def lock(self) -> None:
        """What an earlier run was asked for is dropped.

        Raises run_folder.RunFolderError if another trainer has it.
        """
        descriptor = run_folder.lock(self.path)
        run_folder.drop_requests(self.path)
        self._unlock()
        self._descriptor = descriptor
        self._unlock = weakref.finalize(self, run_folder.unlock, descriptor)

    def unlock(self) -> None:
        self._unlock()

    @contextmanager
    def unlocked_on_failure(self) -> Iterator[None]:
        """Of the block. An error that somebody keeps would keep this object, and the lock."""
        with ExitStack() as stack:
            stack.callback(self.unlock)
            yield
            stack.pop_all()

    def owns(self) -> bool:
        """Whether what is at the path now is this run's."""
        return self.is_ours and run_folder.is_at(self.path, self._descriptor)

    @property
    def starts(self) -> list[Start]:
        """Those in config.json."""
        return self._starts

    def save_config(self, config: Config, start: Start) -> None:
        """Write the settings of the run that starts, and all its starts so far, into config.json.

        Raises:
            run_folder.RunFolderError: it cannot be written.
        """
        self._config, self._starts = config, with_start(self._starts, start)
        with run_folder.problems_told(self.path):
            checkpoint.save_config(config, self.path, self._starts)

    def keep(self) -> bool:
        """Make it again if somebody has deleted it: the next checkpoint goes there.

        Returns:
            Whether it had to be made.

        Raises:
            run_folder.RunFolderError: another run has begun in its place.
            OSError: it cannot be written.
        """
        config_path = self.path / "config.json"
        was_made = not run_folder.is_at(self.path, self._descriptor)
        if was_made:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self.lock()
                if os.path.lexists(config_path):
                    raise run_folder.RunFolderError(
                        f"run_dir={self.path} was deleted, and holds another run by now; this one "
                        f"leaves it alone, and ends"
                    )
            except run_folder.RunFolderError:
                self.is_ours = False
                raise
            log.warning("%s was deleted or moved; it has been made again", self.path)
        if not config_path.exists():
            checkpoint.save_config(self._config, self.path, self._starts)
        return was_made

    def has_checkpoints(self) -> bool:
        return any((self.path / "checkpoints").glob("*"))

    def remove_config(self) -> None:
        """If it is still the one that was saved: somebody may have changed the folder, or its disk.

        So that a new run may begin there.
        """
        path = self.path / "config.json"
        with suppress(OSError, ConfigError):
            if path.exists() and load_config(path) == self._config:
                path.unlink()
