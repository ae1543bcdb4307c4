"""What the learner says of its updates: sums by name, whatever order they come in."""

import math

import pytest
import torch

from sfrl.workers.statistics import MAX_REPORTED_LAG, UpdateStatistics

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def statistics():
    return UpdateStatistics(("loss", "entropy"), torch.device("cpu"))


def update(loss, entropy):
    return {"entropy": torch.tensor(entropy), "loss": torch.tensor(loss)}


def test_means_are_by_name_and_begin_anew(statistics):
    statistics.add(update(1.0, 10.0), YES)
    statistics.add(update(2.0, 30.0), YES)
    means, _, _ = statistics.take()
    assert means == {"loss": 1.5, "entropy": 20.0}
    assert statistics.take() == ({}, 0, [0] * (MAX_REPORTED_LAG + 1))


def test_an_update_that_was_left_out_does_not_hide_the_others(statistics):
    statistics.add(update(1.0, 10.0), YES)
    statistics.add(update(math.inf, 50.0), NO)
    means, _, _ = statistics.take()
    assert means == {"loss": 1.0, "entropy": 10.0}


@pytest.mark.parametrize("values", [{"loss": torch.ones(())}, update(1.0, 1.0) | {"kl": YES}])
def test_names_that_were_not_announced_are_refused(statistics, values):
    with pytest.raises(KeyError, match="are not those announced"):
        statistics.add(values, YES)


def test_steps_are_counted_and_those_skipped_in_a_row(statistics):
    for applied in (YES, NO, NO, YES, NO, NO, NO):
        statistics.add(update(1.0, 1.0), applied)
    assert statistics.count() == (2, 5, 3)
    statistics.add(update(1.0, 1.0), NO)
    assert statistics.count() == (0, 1, 4), "the row goes on"
    statistics.add(update(1.0, 1.0), YES)
    assert statistics.count() == (1, 0, 0)


def test_an_update_without_rows_counts_for_nothing(statistics):
    statistics.add(update(1.0, 10.0), YES, YES)
    statistics.add(update(0.0, 0.0), NO, NO)
    statistics.add(update(1.0, 1.0), NO, YES)
    statistics.add(update(0.0, 0.0), NO, NO)
    assert statistics.count() == (1, 1, 1), "nor does it end a row of skipped ones"
    assert statistics.take()[0] == {"loss": 1.0, "entropy": 5.5}


def test_the_lag_is_that_of_valid_rows(statistics):
    lag = torch.tensor([[0, 3], [300, 7]])
    valid = torch.tensor([[True, True], [True, False]])
    mask = torch.tensor([[True, True], [False, False]])
    statistics.add_rows(lag, valid, mask)
    statistics.add_rows(torch.zeros_like(lag), valid, valid)
    means, dropped_rows, counts = statistics.take()
    assert means == {"policy_lag_mean": 303 / 6, "policy_lag_max": 300.0}
    assert dropped_rows == 1
    assert {lag: n for lag, n in enumerate(counts) if n} == {0: 4, 3: 1, MAX_REPORTED_LAG: 1}
