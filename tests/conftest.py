import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from sfrl import envs
from sfrl.ipc.shared_memory import unlink_segments
from sfrl.run.roles import Shared
from sfrl.run.trainer import Trainer
from sfrl.settings.algorithms import make_config
from tests.runs import ROOT

# For `--env=tests...` of programs that are started in another folder.
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".strip(os.pathsep)

# Under nohup, or in the background of a script, these would be ignored, by all the runs as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same commit has the same result. `--hypothesis-profile=search` has new examples each time.
settings.register_profile("suite", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def the_same_numbers_each_time() -> None:
    """Of torch's own generator, whatever the tests before have drawn; others have seeds."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that a test calls sets handlers, as programs do: the next test has none of them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def make_shared(tmp_path: Path) -> Iterator[Callable[..., Shared]]:
    """Makes what the processes of a run share, without the processes: `make_shared(seed=3)`."""

    def make(**settings: object) -> Shared:
        config = make_config({"run_dir": str(tmp_path), **settings})
        return Trainer(config, spec=envs.describe(config.env, config.env_options)).shared

    yield make
    unlink_segments()
