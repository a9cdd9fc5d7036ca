"""Averages over resamples are means of single solutions; several targets are one direction."""

import numpy as np
import pytest

from gradex.selection.averaged_weights import averaged_weights, products, target_shares
from gradex.selection.pareto import min_norm
from gradex.selection.weighing import weigh_sources

METHODS = pytest.mark.parametrize("method", ["match", "balance", "cosine"])


def means(draws: int, names: int, *, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(names, 8)) + 0.4
    noise = spread * rng.normal(size=(draws, names, 8))
    noise[0] = 0
    return (middle + noise).astype(np.float32)


@METHODS
def test_weights_are_the_mean_over_the_resamples(method):
    sources, targets = means(21, 5), means(21, 1, seed=1)
    found = averaged_weights(method, sources, targets)
    each = np.stack([
        weigh_sources(method, *products(rows, wanted[0])).weights
        for rows, wanted in zip(sources[1:], targets[1:], strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(found.weighing.weights, each.mean(0))
    np.testing.assert_allclose(found.low, np.quantile(each, 0.05, axis=0))
    np.testing.assert_allclose(found.high, np.quantile(each, 0.95, axis=0))
    assert found.support == pytest.approx((each > 1e-9).sum(1).mean())
    gram, b = products(sources[0], targets[0, 0])
    np.testing.assert_allclose(found.weighing.falls, gram @ each.mean(0))
    assert found.weighing.target_falls == pytest.approx(b @ each.mean(0))
    np.testing.assert_allclose(found.alone, b)
    assert np.abs(found.cosines).max() <= 1


@METHODS
def test_without_resamples_the_weights_are_those_of_all_rows(method):
    sources, targets = means(1, 5), means(1, 1, seed=1)
    found = averaged_weights(method, sources, targets)
    alone = weigh_sources(method, *products(sources[0], targets[0, 0]))
    np.testing.assert_array_equal(found.weighing.weights, alone.weights)
    np.testing.assert_array_equal(found.active, alone.active)
    assert np.isnan(found.low).all() and np.isnan(found.high).all()


def test_several_targets_are_one_direction_that_serves_all():
    wanted = means(1, 3, seed=2)[0]
    shares = target_shares(wanted)
    np.testing.assert_allclose(shares, min_norm(products(wanted, wanted[0])[0]))
    direction = shares @ wanted
    assert (wanted @ direction).min() >= direction @ direction - 1e-5
    assert target_shares(wanted[:1]).tolist() == [1]


def test_where_the_targets_own_sources_are_there_each_has_its_share():
    rows = means(1, 5, seed=3)
    found = averaged_weights("match", rows, rows[:, :2])
    np.testing.assert_allclose(found.weighing.weights[:2], found.target_shares, atol=1e-5)
    assert found.weighing.weights[2:].max() < 1e-5


def test_a_source_that_is_only_sometimes_taken_has_a_wide_interval():
    sure = averaged_weights("match", means(41, 4, spread=0.01), means(41, 1, seed=1, spread=0.01))
    unsure = averaged_weights("match", means(41, 4, spread=1), means(41, 1, seed=1, spread=1))
    assert (sure.high - sure.low).max() < 0.1 < (unsure.high - unsure.low).max()
