"""Several targets as one number: units drop out, weights and the worst do what they say."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from toys import NAMES, additive

from gradex.data.subsets import membership
from gradex.estimators.protocol import uncalibrated
from gradex.selection.forward import forward_select
from gradex.selection.swap import swap_select
from gradex.selection.targets import score_of, together

SUBSETS = [frozenset(s) for s in ("a", "bc", "abc", "def", "abcdef")]


class Given:
    """An estimator whose values of each target are those of a score."""

    def __init__(self, *scores, calibrated):
        self.scores, self.calibrated = scores, calibrated

    def fit(self, store, *, sources=None, targets=None, split="select"):
        return self

    def predict(self, subsets):
        value = np.stack([score(subsets) for score in self.scores], axis=1)
        names = [f"t{i}" for i in range(len(self.scores))]
        return replace(uncalibrated(names, value), calibrated=self.calibrated)


def other(subsets):
    """Wants `b` and `f` instead."""
    return membership(subsets, NAMES) @ np.array([1.0, -3.0, 0.5, 1.0, 1.0, -1.0])


def scored(*scores, weights=(1.0, 1.0), robust=False, calibrated=False):
    estimator = Given(*scores, calibrated=calibrated)
    return score_of(estimator, together(estimator, NAMES, list(weights), robust=robust))


def test_one_target_is_left_as_it_is():
    np.testing.assert_array_equal(scored(additive, weights=[1.0])(SUBSETS), additive(SUBSETS))


def test_losses_are_averaged_as_they_are():
    score = scored(additive, other, weights=[1.0, 3.0], calibrated=True)
    np.testing.assert_allclose(score(SUBSETS), (additive(SUBSETS) + 3 * other(SUBSETS)) / 4)


@pytest.mark.parametrize("robust", [False, True])
def test_the_unit_of_an_uncalibrated_target_does_not_matter(robust):
    def louder(subsets):
        return 7 + 100 * other(subsets)

    plain = scored(additive, other, robust=robust)(SUBSETS)
    np.testing.assert_allclose(scored(additive, louder, robust=robust)(SUBSETS), plain)


def test_the_worst_is_never_better_than_the_mean():
    mean, worst = (scored(additive, other, robust=robust)(SUBSETS) for robust in (False, True))
    assert (worst >= mean - 1e-12).all() and (worst > mean + 0.1).any()


def test_a_target_that_nothing_moves_changes_no_order():
    score = scored(additive, lambda subsets: np.full(len(subsets), 3.0))
    assert (np.argsort(score(SUBSETS)) == np.argsort(additive(SUBSETS))).all()


def test_weights_pull_the_choice_from_one_target_to_the_other():
    """The first wants `a`, `c` and `e`, the second `b` and `f`."""
    for weights, best in (((1.0, 1e-6), {"a", "c", "e"}), ((1e-6, 1.0), {"b", "f"})):
        choice = forward_select(scored(additive, other, weights=weights), NAMES)
        assert set(choice.selected) == best


def test_the_worst_target_is_served_too():
    """What helps one target alone leaves the worst where it is: forward stays with little."""
    worst = scored(additive, other, robust=True)
    choice = swap_select(worst, NAMES, start=forward_select(worst, NAMES).selected)
    assert {"a", "b"} <= set(choice.selected)
    every = [frozenset(c) for size in range(1, 7) for c in combinations(NAMES, size)]
    assert choice.value == pytest.approx(worst(every).min())
