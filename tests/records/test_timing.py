import subprocess
import sys
import timeit

import numpy as np
import pytest

from sfrl.records import timing
from sfrl.records.timing import COMPONENT_STAGES, StageTimer, is_waiting, shares

STAGES = ("wait_work", "work")


def test_every_moment_belongs_to_exactly_one_stage(monkeypatch):
    times_s = iter(np.cumsum([5.0, *[0.25, 2.0] * 1000]).tolist())
    monkeypatch.setattr(timing, "perf_counter", lambda: next(times_s))
    totals = np.zeros(2)
    timer = StageTimer(STAGES, totals)
    for _ in range(1000):
        timer.lap("wait_work")
        timer.lap("work")
    assert totals.tolist() == [250.0, 2000.0]


def test_laps_land_in_the_given_row_and_leave_the_others_alone():
    totals = np.zeros((3, 2))
    timer = StageTimer(STAGES, totals[1])
    timer.lap("work")
    assert totals[1, 1] > 0
    assert np.count_nonzero(totals) == 1


def test_totals_go_on_from_what_the_row_held():
    totals = np.array([5.0, 7.0])
    StageTimer(STAGES, totals).lap("wait_work")
    assert totals[0] > 5.0


def test_unknown_stage_is_an_error():
    with pytest.raises(KeyError, match="wrok"):
        StageTimer(STAGES, np.zeros(2)).lap("wrok")


@pytest.mark.parametrize("totals", [np.zeros(3), np.zeros(2, np.float32), np.zeros((1, 2))])
def test_totals_of_another_shape_or_dtype_are_refused(totals):
    with pytest.raises(ValueError, match=r"2 stages need float64\[2\]"):
        StageTimer(STAGES, totals)


def test_a_lap_is_cheap():
    timer = StageTimer(STAGES, np.zeros(2))
    best = min(timeit.repeat(lambda: timer.lap("work"), number=10_000, repeat=20)) / 10_000
    assert best < 2e-6  # 0.2 us on a free core; the slack is for a shared machine


def test_shares_are_of_the_interval_and_average_the_processes():
    before = np.array([[10.0, 90.0], [0.0, 0.0]])
    after = np.array([[11.0, 93.0], [3.0, 1.0]])
    assert shares(STAGES, before, after) == {"wait_work": 0.5, "work": 0.5}


def test_shares_are_nan_where_no_lap_ended():
    assert all(np.isnan(share) for share in shares(STAGES, np.ones(2), np.ones(2)).values())


def test_each_component_has_stages_of_work_and_of_waiting():
    for stages in COMPONENT_STAGES.values():
        assert {is_waiting(stage) for stage in stages} == {True, False}


def test_what_the_trainer_imports_does_not_import_torch():
    modules = "sfrl.records.metrics_writer, sfrl.show.display, sfrl.records.checkpoint"
    script = (
        f"import sys, tempfile, {modules}\n"
        "with sfrl.records.metrics_writer.MetricsWriter(tempfile.mkdtemp()) as writer:\n"
        "    writer.write({'env_frames': 1, 'entropy': 0.5})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
