"""The surrogate: additive and pairwise scores are fitted as they are, and searched."""

import numpy as np
import pytest
from toys import NAMES, additive, synergetic, xor

from gradex.data.subsets import membership, sample_subsets
from gradex.errors import GradexError
from gradex.selection.surrogate import pairwise, surrogate_select

SUBSETS = sample_subsets(NAMES, 50, sizes=[0.2, 0.5, 0.8], seed=0)


def test_the_kernel_counts_shared_sources_and_pairs():
    """As the product of columns, one a source and one a pair."""
    member = membership(SUBSETS, NAMES)
    first, second = np.triu_indices(6, k=1)
    columns = np.hstack([member, member[:, first] * member[:, second]])
    np.testing.assert_allclose(pairwise(member, member), columns @ columns.T / 21)


@pytest.mark.parametrize("score, best", [(additive, "ace"), (synergetic, "ab"), (xor, "abc")])
def test_it_finds_the_best_and_scores_it_truly(score, best):
    choice = surrogate_select(score, NAMES, subsets=SUBSETS)
    assert choice.selected == list(best) and choice.value == score([frozenset(best)])[0]
    last = choice.trace[-1]
    assert last["left_out_r2"] > 0.9
    assert last["surrogate"] == pytest.approx(choice.value, abs=0.5)


def test_it_tells_an_additive_score_from_one_of_pairs():
    def kernel(score):
        return surrogate_select(score, NAMES, subsets=SUBSETS).trace[-1]["kernel"]

    assert kernel(additive) == "linear" and kernel(xor) == "pairwise"


def test_it_asks_for_each_subset_once_and_for_its_choice():
    asked = []

    def score(subsets):
        asked.extend(subsets)
        return additive(subsets)

    choice = surrogate_select(score, NAMES, subsets=SUBSETS + SUBSETS[:10])
    assert asked == [*dict.fromkeys(SUBSETS), frozenset(choice.selected)]


def test_a_flat_score_leaves_nothing_to_tell():
    choice = surrogate_select(lambda s: np.ones(len(s)), NAMES, subsets=SUBSETS)
    assert choice.value == 1 and choice.trace[-1]["left_out_r2"] is None


def test_too_few_subsets_are_refused():
    few = [frozenset("abc"), frozenset("def"), frozenset("abc"), frozenset("abcdef")]
    with pytest.raises(GradexError, match=r"found 3 distinct subsets, .* at least 4"):
        surrogate_select(additive, NAMES, subsets=few)
    with pytest.raises(GradexError, match="f is in none of the 4 subsets"):
        surrogate_select(additive, NAMES, subsets=[frozenset(s) for s in ("ab", "bc", "cd", "de")])
