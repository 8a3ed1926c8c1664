"""Statistics by hand, against rliable's own, and whether intervals cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from rliable import metrics

from experiments import stats

SCORES = np.array([[0.0, 3.0], [0.0, 4.0], [1.0, 100.0], [2.0, 100.0]])  # (runs, tasks)


def test_aggregates_by_hand():
    found = {name: e.value for name, e in stats.aggregates(SCORES, reps=100).items()}
    # sorted 0 0 1 2 3 4 100 100, two cut off at either end; task means 0.75 and 51.75; of the eight, two are 1 below 1
    assert found == pytest.approx({"IQM": 2.5, "median": 26.25, "mean": 26.25, "optimality gap": 0.25})


def test_intervals_are_the_same_each_time_leave_numpys_state_and_change_with_the_seed():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first = stats.aggregates(SCORES, reps=200, seed=0)
    assert np.random.random() == expected
    assert stats.aggregates(SCORES, reps=200, seed=0) == first
    assert stats.aggregates(SCORES, reps=200, seed=1) != first
    assert all(e.low <= e.value <= e.high for e in first.values())


def test_a_single_run_has_no_interval():
    assert {(e.low, e.high, e.runs) for e in stats.aggregates(SCORES[:1], reps=100).values()} == {(None, None, 1)}
    assert stats.improvement(SCORES[:1], SCORES, reps=100).low is None
    assert stats.profile(SCORES[:1], np.array([0.5]), reps=100).low is None
    assert stats.curve(np.arange(2.0), np.zeros((1, 2, 2)), "IQM", reps=100).low is None


def test_intervals_of_a_mean_cover_it_about_95_times_in_100():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        band = stats.curve(np.zeros(1), random.normal(size=(15, 2, 1)), "mean", reps=200)
        covered += band.low[0] <= 0.0 <= band.high[0]
    # percentile intervals of 15 runs are a little narrow, 0.93; around it four standard errors of 200 draws
    assert 0.86 <= covered / 200 <= 0.99


def test_more_runs_make_a_narrower_interval():
    random = np.random.default_rng(1)
    few, many = (stats.aggregates(random.normal(size=(n, 3)), reps=300)["IQM"] for n in (5, 80))
    assert (few.high - few.low) > 2 * (many.high - many.low)


def test_separated_scores_always_improve_and_equal_ones_are_a_tossed_coin():
    low, high = np.array([[1.0, 10.0], [2.0, 20.0]]), np.array([[3.0, 21.0], [4.0, 30.0], [5.0, 40.0]])
    assert stats.improvement(high, low, reps=100) == stats.Estimate(1.0, 1.0, 1.0, 2)
    assert stats.improvement(low, high, reps=100).turned() == stats.Estimate(1.0, 1.0, 1.0, 2)
    same = np.full((3, 2), 500.0)
    assert stats.improvement(same, same[:2], reps=100).value == 0.5


def test_improvement_by_hand_and_as_rliable_has_it():
    x, y = np.array([[1.0], [3.0], [5.0]]), np.array([[2.0], [3.0]])
    # 1 beats none; 3 beats 2 and ties 3; 5 beats both: (0 + 1.5 + 2) / 6
    assert stats.probability_above(x, y) == pytest.approx(3.5 / 6)
    random = np.random.default_rng(2)
    x, y = random.integers(0, 6, size=(9, 4)).astype(float), random.integers(0, 6, size=(7, 4)).astype(float)
    assert stats.probability_above(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))


def test_a_turned_probability():
    assert stats.Estimate(0.75, 0.5, 1.0, 5).turned() == stats.Estimate(0.25, 0.0, 0.5, 5)


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    band = stats.profile(SCORES, np.array([-1.0, 0.0, 2.5, 100.0]), reps=200)
    assert band.value.tolist() == [1.0, 0.75, 0.5, 0.0]
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()


def test_a_curve_is_the_iqm_at_each_point_and_begins_where_all_runs_have_a_value():
    random = np.random.default_rng(3)
    values = random.normal(size=(5, 3, 4))  # (runs, tasks, G)
    values[2, 1, 0] = np.nan
    band = stats.curve(np.array([10.0, 20.0, 30.0, 40.0]), values, "IQM", reps=100)
    assert band.x.tolist() == [20.0, 30.0, 40.0]
    assert band.value == pytest.approx([metrics.aggregate_iqm(values[..., g]) for g in (1, 2, 3)])
    assert stats.curve(np.array([1.0, 2.0]), values[..., 1:3], "mean", reps=100).value == pytest.approx(values[..., 1:3].mean(axis=(0, 1)))
    assert stats.curve(np.array([10.0]), values[..., :1], "IQM", reps=100) is None
