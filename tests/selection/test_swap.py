"""Local search: what it ends at has no better neighbour, from wherever it starts."""

from itertools import combinations

import numpy as np
import pytest
from toys import EFFECTS, NAMES, additive, xor

from gradex.errors import GradexError
from gradex.selection import swap
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.swap import swap_select

EVERY = [frozenset(c) for size in range(1, 7) for c in combinations(NAMES, size)]


def rough(seed):
    """A score without any structure."""
    values = dict(zip(EVERY, np.random.default_rng(seed).normal(size=len(EVERY)), strict=True))
    return lambda subsets: np.array([values[subset] for subset in subsets])


def near(one, other):
    """Single moves, exchanges and pairs: the neighbourhoods, written out."""
    more, less = len(one - other), len(other - one)
    return (more, less) in {(1, 0), (0, 1), (1, 1), (2, 0), (0, 2)}


@pytest.mark.parametrize("rules", [NO_RULES, Rules(max_sources=3), Rules(must=frozenset("b"))])
@pytest.mark.parametrize("seed", range(5))
def test_no_neighbour_of_the_choice_is_better(seed, rules):
    score = rough(seed)
    for start in [subset for subset in EVERY if rules.allows(subset)][::7]:
        choice = swap_select(score, NAMES, start=start, rules=rules)
        chosen = frozenset(choice.selected)
        around = [s for s in EVERY if near(s, chosen) and rules.allows(s)]
        assert choice.value <= min(score(around)) and choice.value <= score([start])[0]


@pytest.mark.parametrize("start", EVERY[::5])
def test_from_any_start_a_pair_that_helps_only_together_is_found(start):
    assert swap_select(xor, NAMES, start=start).selected == ["a", "b", "c"]


def test_values_fall_from_step_to_step():
    values = [step["value"] for step in swap_select(rough(3), NAMES, start="f").trace]
    assert len(values) > 2 and values == sorted(values, reverse=True)


def test_where_nothing_may_be_added_or_dropped_sources_are_exchanged():
    rules = Rules(must=frozenset("f"), max_sources=2, max_share=0.5)
    choice = swap_select(additive, NAMES, start="bf", rules=rules)
    assert choice.selected == ["a", "f"]
    assert choice.trace[1]["added"] == ["a"] and choice.trace[1]["removed"] == ["b"]


def test_rounds_are_bounded():
    choice = swap_select(additive, NAMES, start="b", max_rounds=1)
    assert set(choice.selected) == set("ab") and len(choice.trace) == 2
    assert choice.trace[-1]["stop"] == {"reason": "the number of rounds, 1, is used up"}


def test_what_is_left_out_of_a_large_neighbourhood_is_counted(monkeypatch):
    """Of 2 by 4 exchanges and 7 pairs, four each; single moves are all tried."""
    monkeypatch.setattr(swap, "MOST_MOVES", 4)
    sizes = [
        (len(moves), skipped)
        for moves, skipped in swap.neighbourhoods(additive, frozenset("bf"), NAMES)
    ]
    assert sizes == [(6, 0), (4, 4), (4, 2)]
    _, (exchanges, _), _ = swap.neighbourhoods(additive, frozenset("bf"), NAMES)
    assert exchanges == [(("a",), ("b",)), (("a",), ("f",)), (("e",), ("b",)), (("e",), ("f",))]


def test_scores_are_what_each_source_does_at_the_end():
    choice = swap_select(additive, NAMES, start="b")
    assert choice.scores == pytest.approx(EFFECTS)


def test_noise_of_rounding_moves_nothing():
    def nearly_flat(subsets):
        return np.array([1 + 1e-14 * len(subset) for subset in subsets])

    assert swap_select(nearly_flat, NAMES, start="abc").selected == list("abc")


def test_one_source_that_must_be_has_no_move():
    choice = swap_select(additive, ["b"], start="b", rules=Rules(must=frozenset("b")))
    assert (
        choice.selected == ["b"] and choice.trace[0]["stop"]["reason"] == "no move lowers the score"
    )


@pytest.mark.parametrize(
    "start, says", [("x", "unknown source 'x'"), ("abc", "do not keep to"), ("", "do not keep to")]
)
def test_a_start_that_cannot_be_is_refused(start, says):
    with pytest.raises(GradexError, match=says):
        swap_select(additive, NAMES, start=start, rules=Rules(max_sources=2))
