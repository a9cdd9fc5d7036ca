"""Evidence in numbers: closed forms, invariances, and nan where a quantity is not defined."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from gradex.data.evidence import (
    coverage,
    log_r2,
    mean_of_others,
    regret,
    spearman_interval,
    squared_relative_error,
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(size=30))
    return truth * np.exp(rng.normal(size=30)), truth


def test_the_interval_is_that_of_a_slow_bootstrap(pair):
    estimate, truth = pair
    drawn = np.random.default_rng(4).integers(30, size=(1000, 30))
    slow = [spearmanr(estimate[rows], truth[rows]).statistic for rows in drawn]
    assert spearman_interval(estimate, truth, seed=4) == pytest.approx(
        tuple(np.quantile(slow, [0.025, 0.975]))
    )


def test_the_interval_knows_ranks_only(pair):
    estimate, truth = pair
    low, high = spearman_interval(estimate, truth)
    assert low < spearmanr(estimate, truth).statistic < high
    assert spearman_interval(np.log(estimate), truth**3) == (low, high)
    assert spearman_interval(-estimate, truth) == pytest.approx((-high, -low))


def test_perfect_ranks_have_no_width():
    values = np.arange(10.0)
    assert spearman_interval(values, values**2) == pytest.approx((1, 1))


def test_draws_without_a_rank_correlation_do_not_count():
    """Of three runs, a ninth of the draws is one run thrice."""
    assert spearman_interval(np.arange(3.0), np.arange(3.0)) == pytest.approx((1, 1))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        first = rng.normal(size=40)
        low, high = spearman_interval(first + rng.normal(size=40), first)
        hits += low <= 6 / math.pi * math.asin(math.sqrt(0.5) / 2) <= high  # of a normal pair
    assert hits >= 50


def test_log_r2_in_closed_form():
    truth = np.exp([0.0, 1.0, 2.0])
    assert log_r2(truth, truth) == 1
    assert log_r2(np.full(3, math.e), truth) == pytest.approx(0)
    assert log_r2(np.exp([0.0, 1.0, 3.0]), truth) == pytest.approx(1 - 1 / 2)
    assert log_r2(5 * np.exp([0.0, 1.0, 3.0]), 5 * truth) == pytest.approx(1 / 2)


def test_squared_relative_error_in_closed_form():
    truth = np.array([3.0, 4.0])
    assert squared_relative_error(truth, truth) == 0
    assert squared_relative_error(np.zeros(2), truth) == 1
    assert squared_relative_error(np.array([4.0, 6.0]), truth) == pytest.approx(5 / 25)


def test_coverage_counts_the_bounds_as_within():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    assert coverage(truth - 1, np.array([1.0, 1.5, 9.0, 9.0]), truth) == 0.75
    assert coverage(truth, truth, truth) == 1


def test_regret_of_the_chosen_run():
    truth = np.array([2.0, 1.0, 4.0])
    assert regret(np.array([5.0, 3.0, 9.0]), truth) == 0
    assert regret(np.array([5.0, 8.0, 1.0]), truth) == 3
    assert regret(np.array([1.0, 8.0, 1.0]), truth) == 2, "the mean of those that tie"
    assert regret(np.zeros(3), truth) == pytest.approx(truth.mean() - truth.min())


def test_the_mean_of_others_leaves_each_run_out():
    truth = np.random.default_rng(0).normal(size=(5, 2))
    slow = [np.delete(truth, i, axis=0).mean(0) for i in range(5)]
    assert mean_of_others(truth) == pytest.approx(np.array(slow))
    backwards = spearmanr(mean_of_others(truth)[:, 0], truth[:, 0]).statistic
    assert backwards == pytest.approx(-1)


NAN, ONE, TWO = np.full(3, np.nan), np.ones(3), np.array([1.0, 2.0, 3.0])


HOLE = np.array([1.0, np.nan, 3.0])


@pytest.mark.parametrize(
    ("measure", "sides"),
    [
        (spearman_interval, (TWO[:2], TWO[:2])),
        (spearman_interval, (ONE, TWO)),
        (spearman_interval, (TWO, ONE)),
        (spearman_interval, (HOLE, TWO)),
        (log_r2, (TWO - 1, TWO)),
        (log_r2, (TWO, TWO - 1)),
        (log_r2, (TWO, ONE)),
        (log_r2, (TWO[:1], TWO[:1])),
        (log_r2, (HOLE, TWO)),
        (squared_relative_error, (ONE, 0 * ONE)),
        (squared_relative_error, (HOLE, TWO)),
        (coverage, (HOLE, TWO, TWO)),
        (coverage, (NAN, NAN, TWO)),
        (regret, (HOLE, TWO)),
        (mean_of_others, (np.ones((1, 2)),)),
    ],
)
def test_what_is_not_defined_is_nan(measure, sides):
    assert np.isnan(measure(*sides)).all()
