"""Rules: what they allow is what is written, and searches are never led where no way goes on."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.errors import GradexError
from gradex.selection.ranked import random_select
from gradex.selection.rules import NO_RULES, Rules

NAMES = list("abcde")
SIZES = {"a": 5, "b": 1, "c": 2, "d": 4, "e": 3}


def every_subset(names=NAMES):
    return [frozenset(c) for size in range(len(names) + 1) for c in combinations(names, size)]


def test_without_rules_every_subset_but_the_empty_one_is_allowed():
    allowed = [subset for subset in every_subset() if NO_RULES.allows(subset)]
    assert allowed == every_subset()[1:]


@pytest.mark.parametrize(
    "rules, law",
    [
        (Rules(must=frozenset("ab")), lambda s: {"a", "b"} <= s),
        (Rules(never=frozenset("ab")), lambda s: not {"a", "b"} & s),
        (Rules(max_sources=2), lambda s: len(s) <= 2),
        (Rules(budget=6, sizes=SIZES), lambda s: sum(SIZES[n] for n in s) <= 6),
        (Rules(min_share=0.3), lambda s: len(s) * 0.3 <= 1),
        (Rules(min_share=1 / 3), lambda s: len(s) <= 3),
        (Rules(max_share=0.3), lambda s: len(s) * 0.3 >= 1),
        (Rules(max_share=1 / 3), lambda s: len(s) >= 3),
    ],
)
def test_each_rule_is_what_it_says(rules, law):
    for subset in every_subset():
        assert rules.allows(subset) == (law(subset) and len(subset) > 0)


numbers = st.none() | st.integers(1, 5)
any_rules = st.builds(
    Rules,
    must=st.frozensets(st.sampled_from(NAMES), max_size=2),
    never=st.frozensets(st.sampled_from(NAMES), max_size=2),
    max_sources=numbers,
    budget=st.none() | st.integers(1, 15),
    sizes=st.fixed_dictionaries({name: st.integers(1, 6) for name in NAMES}),
    min_share=st.sampled_from([None, 0.25, 0.5]),
    max_share=st.sampled_from([None, 0.3, 0.5]),
)


@settings(max_examples=200, deadline=None)
@given(rules=any_rules)
def test_a_step_is_open_exactly_where_an_allowed_subset_lies_ahead(rules):
    allowed = [subset for subset in every_subset() if rules.allows(subset)]
    for subset in every_subset():
        grown = [n for n in NAMES if n not in subset and any(subset | {n} <= a for a in allowed)]
        assert rules.additions(subset, NAMES) == grown
        within = subset - rules.never
        less = [n for n in sorted(within) if any(a <= within - {n} for a in allowed)]
        assert rules.removals(sorted(within)) == less


@settings(max_examples=200, deadline=None)
@given(rules=any_rules)
def test_rules_are_refused_exactly_where_nothing_is_allowed(rules):
    if any(map(rules.allows, every_subset())):
        rules.require_possible(NAMES)
        assert rules.allows(rules.in_order(NAMES[::-1]))
    else:
        with pytest.raises(GradexError, match="--"):
            rules.require_possible(NAMES)


def test_a_ranking_is_gone_down_as_far_as_the_budget_lets():
    rules = Rules(must=frozenset("e"), budget=9, sizes=SIZES)
    assert rules.in_order(["a", "d", "c", "b", "e"]) == ["e", "a", "b"]


IMPOSSIBLE = {
    "share of nothing": (Rules(max_share=5e-324), "4.94066e-324 need 1000000000 sources"),
    "in both": (Rules(must=frozenset("a"), never=frozenset("ab")), "both name 'a'"),
    "unknown must": (Rules(must=frozenset("x")), "--must: unknown source 'x'; known are: a, b"),
    "unknown never": (Rules(never=frozenset("x")), "--never: unknown source 'x'; known are: a, b"),
    "nothing left": (Rules(never=frozenset(NAMES)), "--never: names every source"),
    "too many musts": (Rules(must=frozenset("abc"), max_sources=2), "--must: names 3 sources"),
    "musts for a share": (Rules(must=frozenset("abc"), min_share=0.4), "--min_share allows at m"),
    "small budget": (Rules(budget=0, sizes=SIZES), "the smallest source, 'b' needs 1"),
    "dear musts": (Rules(must=frozenset("ad"), budget=8, sizes=SIZES), "sources of --must needs 9"),
    "dear shares": (Rules(max_share=0.25, budget=9, sizes=SIZES), "choice of 4 sources needs 10"),
    "too few": (Rules(max_share=0.1), "need 10 sources, found 5 to choose from"),
    "shares": (Rules(max_share=0.3, min_share=0.4), "need 4 sources, --min_share allows at most 2"),
    "number": (Rules(max_share=0.3, max_sources=3), "need 4 sources, their number"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_told_in_a_sentence(name):
    rules, says = IMPOSSIBLE[name]
    with pytest.raises(GradexError, match=says):
        rules.require_possible(NAMES)


def test_no_source_at_all_is_refused():
    with pytest.raises(GradexError, match="no source to choose from"):
        NO_RULES.require_possible([])


def test_a_number_asked_for_is_one_of_the_rules():
    with pytest.raises(GradexError, match="--must: names 2 sources"):
        random_select(print, NAMES, seed=0, top_k=1, rules=Rules(must=frozenset("ab")))
