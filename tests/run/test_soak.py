"""The soak test in little more than a minute; `make soak` takes an hour and tolerates less."""

import pytest

from benchmarks import soak


@pytest.mark.slow
def test_nothing_grows_and_nothing_is_lost(capsys):
    args = soak.Args(
        minutes=1.1,
        settle_minutes=0.45,
        kill_seconds=15,
        sample_seconds=2,
        memory_tolerance=0.1,
        speed_tolerance=0.4,
        standstill_seconds=30,  # on a machine that others load, a start takes long
    )
    assert soak.main(args) == 0, capsys.readouterr().out
    assert "nothing grew, nothing was lost" in capsys.readouterr().out
