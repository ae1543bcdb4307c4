"""A machine that is too small says so, in numbers, before anything starts."""

import re
import resource
import subprocess
import sys

import psutil
import pytest

from sfrl.run import limits
from tests.runs import TINY, finish, segments, training


def limited(tmp_path, limits: dict[int, tuple[int, int]], *flags: str):
    """How a run ends that may use no more than this."""
    with training(tmp_path / "run", *TINY, *flags) as process:
        trainer = psutil.Process(process.pid)
        for limit, values in limits.items():
            trainer.rlimit(limit, values)
        ended = finish(process)
    assert not segments(process.pid)
    return ended


def test_too_few_open_files_end_it_before_it_starts(tmp_path):
    ended = limited(tmp_path, {resource.RLIMIT_NOFILE: (80, 80)})
    assert ended.code == 2
    assert "3 processes need 88 open files in the trainer, and the limit is 80" in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_limit_that_may_be_raised_is(tmp_path):
    ended = limited(
        tmp_path, {resource.RLIMIT_NOFILE: (80, 4096)}, "--num-workers=6", "--train-seconds=5"
    )
    assert ended.code == 0, ended.stderr


def test_too_many_workers_for_the_memory_end_it_before_it_starts(tmp_path):
    ended = limited(tmp_path, {}, "--num-workers=100000")
    assert ended.code == 2
    text = (
        r"100002 processes, [\d,]+ MiB of trajectories and a model of 0 MiB need at least "
        r"[\d,]+ MiB of memory, and [\d,]+ MiB are free"
    )
    assert re.search(text, ended.stderr)
    assert "lower --num-workers=100000" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_too_few_processes_in_the_control_group_are_told(make_shared, monkeypatch):
    monkeypatch.setattr(limits, "available_processes", lambda: 3.0)
    with pytest.raises(
        limits.ShortageError,
        match=r"needs 7 processes and threads, and its control group has room for 3 \(pids.max\); ",
    ):
        make_shared(env="CartPole-v1", frameskip=1, num_workers=1, batch_size=128)


def test_a_target_network_needs_memory_as_well(make_shared, monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 0)
    settings = {"env": "CartPole-v1", "frameskip": 1, "num_workers": 1, "batch_size": 128}
    settings["device"] = "cpu"
    needed = []
    for system in ("appo", "n-step-q"):
        with pytest.raises(limits.ShortageError) as refusal:
            make_shared(**settings, rnn="gru", rnn_size=4000, system=system)
        model, total = re.search(
            r"a model of ([\d,]+) MiB need at least ([\d,]+) MiB", str(refusal.value)
        ).groups()
        needed.append((int(model), int(total.replace(",", ""))))
    (model, without), (_, total) = needed
    assert model > 100
    # The second copy in shared memory, which has two of each, and the target itself.
    assert total - without == pytest.approx(3 * model, abs=3)


def test_a_learners_tensors_come_from_pages_that_it_has():
    """Of 20 MB each, more of them than glibc keeps on its own."""
    code = (
        "import resource, torch\n"
        "from sfrl.run.roles import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def pages():\n"
        "    tensors = [torch.ones(5_000_000) for _ in range(5)]\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = pages()\n"
        "print([pages() for _ in range(10)][-1] - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    fresh = int(ended.stdout) * resource.getpagesize()
    # Of 1 GB in all. Memory is not cut alike each time: a tensor or two more may have fresh pages.
    assert fresh < 5 * 20e6
