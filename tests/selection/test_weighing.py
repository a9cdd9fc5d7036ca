"""What weights do is what a small step does; conflicts are those that are planted."""

import numpy as np
import pytest

from gradex.errors import GradexError
from gradex.selection.pareto import balance_weights
from gradex.selection.weighing import (
    common_ground,
    conflicts,
    cosines,
    effects_of,
    weigh_sources,
)


def drawn(m=4, dim=7, seed=0):
    rng = np.random.default_rng(seed)
    rows, target = rng.normal(size=(m, dim)) + 0.3, rng.normal(size=dim) + 0.3
    return rows, target, rows @ rows.T, rows @ target


@pytest.mark.parametrize("method", ["match", "balance", "cosine"])
def test_falls_are_the_inner_products_with_the_step(method):
    rows, target, gram, b = drawn()
    found = weigh_sources(method, gram, b)
    step = found.weights @ rows
    np.testing.assert_allclose(found.falls, rows @ step)
    assert found.target_falls == pytest.approx(target @ step)
    assert found.least_fall == found.falls.min()
    assert found.support == np.count_nonzero(found.weights > 1e-9)


def test_the_active_bound_is_what_holds_balance_back():
    """Without the bounds, all weight would go to the source that helps most: here it would undo
    another one, up to its bound."""
    rows = np.array([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.4]])
    target = np.array([1.0, 0.1])
    gram, b = rows @ rows.T, rows @ target
    found = weigh_sources("balance", gram, b)
    assert found.active.tolist() == [False, False, True]
    assert found.falls[2] == pytest.approx(b[2], abs=1e-7)
    assert found.support == 2 and found.target_falls < b.max()
    np.testing.assert_array_equal(found.weights, balance_weights(gram, b))
    assert not weigh_sources("match", gram, b).active.any()


def test_a_vertex_has_a_support_of_one():
    _, _, gram, b = drawn()
    assert effects_of(np.eye(4)[1], gram, b).support == 1


def test_conflicts_are_the_planted_ones_and_the_worst_is_first():
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, 0.2, 0.0], [0.0, 1.0, 0.0], [0.0, -0.5, 2.0]])
    found = conflicts(rows @ rows.T, ["a", "b", "c", "d"])
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("c", "d"), ("b", "d")]
    assert found[0].cosine == pytest.approx(-1 / np.sqrt(1.04))
    assert [pair.cosine for pair in found] == sorted(pair.cosine for pair in found)


def test_cosines_know_no_lengths():
    rows, _, gram, _ = drawn()
    scaled = rows * np.array([[1e-4], [1], [30], [2]])
    np.testing.assert_allclose(cosines(scaled @ scaled.T), cosines(gram))


def test_common_ground_reaches_from_nothing_to_the_shortest():
    line = np.array([[1.0], [2.0], [5.0]])
    assert common_ground(line @ line.T) == pytest.approx(1)
    assert common_ground(np.eye(4)) == pytest.approx(0.5)
    opposed = np.array([[1.0], [-3.0]])
    assert common_ground(opposed @ opposed.T) == pytest.approx(0, abs=1e-7)


def test_the_shortest_mixture_is_no_way_to_weigh_sources():
    _, _, gram, b = drawn()
    with pytest.raises(GradexError, match="unknown method 'minnorm'; known are: match, balance"):
        weigh_sources("minnorm", gram, b)
