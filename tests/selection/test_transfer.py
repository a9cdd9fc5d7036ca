"""Effects and interactions of scores whose truth is known: additive, planted pairs, XOR, noise."""

from itertools import combinations

import numpy as np
import pytest

from gradex.data.subsets import membership
from gradex.errors import GradexError
from gradex.selection.scores import evaluating_once
from gradex.selection.transfer import (
    Effects,
    draw_contexts,
    effects,
    interactions,
    strongest,
)

NAMES = list("abcdefgh")
# Sums of eighths are exact in binary, so that laws hold to the last bit.
WEIGHTS = np.array([[-24, 16, -8, 4, 0, 8, -1, 2], [2, 2, 2, -40, 1, 0, 3, 5]]).T / 8


def additive(subsets):
    return 10 + membership(subsets, NAMES) @ WEIGHTS


def planted(subsets):
    """Additive, and `a` and `c` together lower the first target by 3 more."""
    together = np.array([{"a", "c"} <= subset for subset in subsets], dtype=float)
    return additive(subsets) - 3 * together[:, None] * np.array([1.0, 0.0])


def xor(subsets):
    """One if exactly one of `a` and `b` is there."""
    return np.array([[float(("a" in s) != ("b" in s))] for s in subsets])


def contexts_of(names=NAMES, *, count=24, size=0.5, seed=0):
    return draw_contexts(names, count=count, size=size, seed=seed)


def place(*names):
    return tuple(NAMES.index(name) for name in names)


def test_an_additive_score_gives_its_coefficients_without_doubt():
    found = effects(additive, NAMES, contexts=contexts_of())
    assert found.sources == NAMES
    assert (found.mean == WEIGHTS).all()
    assert (found.low == WEIGHTS).all() and (found.high == WEIGHTS).all()
    assert (found.hurts_share == (WEIGHTS > 0)).all()
    assert (found.uncertain == (WEIGHTS == 0)).all()


def test_an_additive_score_has_no_interaction():
    matrices = interactions(additive, NAMES, contexts=contexts_of())
    off = ~np.eye(len(NAMES), dtype=bool)
    assert matrices.shape == (2, 8, 8) and (matrices[:, off] == 0).all()
    assert np.isnan(matrices[:, ~off]).all()


def test_a_planted_pair_is_found_with_its_size():
    matrices = interactions(planted, NAMES, contexts=contexts_of())
    a, c = place("a", "c")
    wanted = np.zeros((2, 8, 8))
    wanted[0, a, c] = wanted[0, c, a] = -3
    wanted[:, range(8), range(8)] = np.nan
    np.testing.assert_array_equal(matrices, wanted)


def test_a_pair_shows_in_the_effects_as_often_as_the_other_is_there():
    contexts = contexts_of()
    found = effects(planted, NAMES, contexts=contexts)
    (a,) = place("a")
    often = np.mean(["c" in context for context in contexts])
    assert found.mean[a, 0] == pytest.approx(WEIGHTS[a, 0] - 3 * often)
    assert found.low[a, 0] < found.mean[a, 0] < found.high[a, 0]


def test_xor_has_an_interaction_of_two_and_effects_that_cancel():
    contexts = [frozenset(c) for c in combinations(NAMES, 4)]
    matrix = interactions(xor, NAMES, contexts=contexts)[0]
    a, b = place("a", "b")
    assert matrix[a, b] == matrix[b, a] == -2
    assert np.nansum(np.abs(matrix)) == 4
    found = effects(xor, NAMES, contexts=contexts)
    assert found.mean[a, 0] == 0 and found.hurts_share[a, 0] == 0.5 and found.uncertain[a, 0]


def test_interactions_equal_the_formula_written_out():
    rng = np.random.default_rng(0)
    table = {}

    def score(subsets):
        return np.array([table.setdefault(s, rng.normal(size=2)) for s in subsets])

    contexts = contexts_of(count=5)
    matrices = interactions(score, NAMES, contexts=contexts)
    for s, u in combinations(NAMES, 2):
        wanted = [
            table[c | {s, u}] - table[(c - {u}) | {s}] - table[(c - {s}) | {u}] + table[c - {s, u}]
            for c in contexts
        ]
        i, j = place(s, u)
        np.testing.assert_allclose(matrices[:, i, j], np.mean(wanted, 0), atol=1e-12)
        np.testing.assert_array_equal(matrices[:, j, i], matrices[:, i, j])


def noisy(seed):
    """A score whose effects vary from context to context: weights, and noise on each subset."""
    rng = np.random.default_rng(seed)
    table = {}

    def score(subsets):
        noise = [table.setdefault(s, rng.normal(size=2)) for s in subsets]
        return additive(subsets) + np.array(noise)

    return score


def test_the_interval_covers_the_planted_effect_about_as_often_as_it_says():
    covered = []
    for seed in range(20):
        found = effects(noisy(seed), NAMES, contexts=contexts_of(count=40, seed=seed), seed=seed)
        covered.append((found.low <= WEIGHTS) & (found.high >= WEIGHTS))
        assert (found.low < found.mean).all() and (found.mean < found.high).all()
    assert 0.82 < np.mean(covered) < 0.97


def test_the_order_of_the_sources_only_permutes_the_tables():
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    names = [NAMES[i] for i in order]
    assert contexts_of(names) == contexts_of(NAMES)
    one = effects(planted, NAMES, contexts=contexts_of())
    other = effects(planted, names, contexts=contexts_of(names))
    for field in ("mean", "low", "high", "hurts_share"):
        np.testing.assert_allclose(getattr(other, field), getattr(one, field)[order], atol=1e-12)
    matrices = interactions(planted, NAMES, contexts=contexts_of())
    permuted = interactions(planted, names, contexts=contexts_of())
    np.testing.assert_array_equal(permuted, matrices[:, order][:, :, order])


def test_the_seeds_decide_everything():
    assert contexts_of(seed=1) == contexts_of(seed=1) != contexts_of(seed=2)
    one, same, other = (effects(noisy(0), NAMES, contexts=contexts_of(), seed=s) for s in (5, 5, 6))
    assert (one.low == same.low).all() and (one.mean == other.mean).all()
    assert (one.low != other.low).any()


@pytest.mark.parametrize("measure", [effects, interactions])
def test_no_subset_is_evaluated_twice(measure):
    asked = []

    def score(subsets):
        asked.extend(subsets)
        return additive(subsets)

    measure(score, NAMES, contexts=contexts_of())
    assert len(asked) == len(set(asked)) and frozenset() not in asked


def test_a_remembered_value_is_the_right_one():
    score = evaluating_once(additive)
    subsets = [frozenset("ab"), frozenset("c"), frozenset("ab"), frozenset("abc")]
    assert (score(subsets) == additive(subsets)).all()
    assert (score(subsets[::-1]) == additive(subsets[::-1])).all()


def test_contexts_are_of_the_size_that_is_asked_for_and_distinct():
    drawn = contexts_of(size=0.25, count=100)
    assert {len(c) for c in drawn} == {2} and len(set(drawn)) == len(drawn) == 28  # all there are
    assert {len(c) for c in contexts_of(size=0.01)} == {2}
    assert contexts_of(size=1.0) == [frozenset(NAMES)]


def test_contexts_may_hold_more_sources_than_are_asked_about():
    found = effects(planted, ["c", "a"], contexts=contexts_of())
    assert found.sources == ["c", "a"]
    assert found.mean[0, 1] == WEIGHTS[2, 1]
    assert interactions(planted, ["c", "a"], contexts=contexts_of())[0, 0, 1] == -3


def test_two_sources_have_effects_without_an_interval_and_no_interaction():
    contexts = contexts_of(["a", "b"])
    found = effects(additive, ["a", "b"], contexts=contexts)
    assert contexts == [frozenset("ab")] and (found.mean == WEIGHTS[:2]).all()
    assert np.isnan(found.low).all() and np.isnan(found.high).all() and found.uncertain.all()
    with pytest.raises(GradexError, match="beside a third; found only two"):
        interactions(additive, ["a", "b"], contexts=contexts)


def test_two_that_have_no_third_in_any_context_are_left_empty():
    matrices = interactions(planted, ["a", "b", "c"], contexts=[frozenset("ac")])
    assert np.isnan(matrices[:, 0, 2]).all() and (matrices[:, 0, 1] == 0).all()


def test_one_source_is_refused():
    for call in (
        lambda: contexts_of(["a"]),
        lambda: effects(additive, ["a"], contexts=contexts_of()),
        lambda: interactions(additive, ["a"], contexts=contexts_of()),
    ):
        with pytest.raises(GradexError, match="found 1 source, expected at least 2"):
            call()


@pytest.mark.parametrize("contexts", [[], [frozenset("a")]])
def test_contexts_that_leave_nothing_are_refused(contexts):
    with pytest.raises(GradexError, match="expected subsets of at least 2 sources"):
        effects(additive, NAMES, contexts=contexts)


@pytest.mark.parametrize("max_pairs, count", [(1, 2), (2, 2), (3, 3), (5, 3), (6, 4), (999, 8)])
def test_the_strongest_make_at_most_so_many_pairs(max_pairs, count):
    kept = strongest(effects(additive, NAMES, contexts=contexts_of()), max_pairs=max_pairs)
    assert len(kept) == count
    assert {"a", "d"} <= set(kept) and kept == [n for n in NAMES if n in kept]


def test_strength_is_a_share_of_the_largest_effect_on_a_target():
    """The second target's numbers are small, but `b` is all that moves it."""
    mean = np.array([[100.0, 0.0], [0.0, 0.001], [90.0, 0.0]])
    found = Effects(["a", "b", "c"], mean, mean, mean, mean)
    assert strongest(found, max_pairs=1) == ["a", "b"]
