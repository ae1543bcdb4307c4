"""train.py learns, with its default settings, within a time that can be told."""

import signal
import time

import pytest

from tests.runs import finish, interrupt, metrics, training

WINDOW = 100  # episodes in `episode_return_mean`


def seconds_until(score: float, limit_s: float, run_dir, *flags: str) -> float:
    """Train until the mean of 100 episodes reaches `score`; then, or at the limit, end the run.

    Raises AssertionError if it is not reached: the best mean is in the text.
    """
    started_s = time.monotonic()
    best = float("-inf")
    with training(run_dir, *flags, "--report-seconds=1") as process:
        while best < score and time.monotonic() - started_s < limit_s and process.poll() is None:
            full = [r["episode_return_mean"] for r in metrics(run_dir) if r["episodes"] >= WINDOW]
            best = max([best, *full])
            time.sleep(0.1)
        seconds = time.monotonic() - started_s
        if process.poll() is None:
            interrupt(process, signal.SIGINT)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert best >= score, f"mean return {best:.1f} after {seconds:.0f} s, not {score}"
    return seconds


@pytest.mark.slow
def test_catch_is_learned_within_a_minute(tmp_path):
    seconds_until(0.95, 60, tmp_path / "run", "--env=tests.tiny_envs:Catch-v0")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["appo", "vtrace"])
def test_cartpole_is_learned_within_three_minutes(tmp_path, loss):
    seconds_until(475, 180, tmp_path / "run", "--env=CartPole-v1", f"--loss={loss}")
