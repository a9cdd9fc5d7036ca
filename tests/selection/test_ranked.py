"""Choices down a ranking: the score tells their value and chooses nothing."""

import pytest
from toys import EFFECTS, NAMES, additive

from gradex.errors import GradexError
from gradex.selection.ranked import random_select, select_all, top_select
from gradex.selection.rules import Rules

BACKWARDS = {name: -effect for name, effect in EFFECTS.items()}


def test_the_ranking_decides_whatever_the_score():
    choice = top_select(additive, NAMES, ranking=BACKWARDS, top_k=2)
    assert choice.selected == ["b", "f"] and choice.value == 13
    assert choice.scores == BACKWARDS
    assert [step["value"] for step in choice.trace] == [12, 13]


def test_equal_ranks_go_by_the_order_of_the_names():
    choice = top_select(additive, NAMES[::-1], ranking=dict.fromkeys(NAMES, 0.0), top_k=3)
    assert choice.selected == ["f", "e", "d"]


def test_a_budget_is_filled_down_the_ranking():
    sizes = dict(zip(NAMES, (5, 9, 2, 3, 1, 4), strict=True))
    rules = Rules(budget=8, sizes=sizes)
    assert top_select(additive, NAMES, ranking=EFFECTS, rules=rules).selected == ["a", "e", "c"]
    assert top_select(additive, NAMES, ranking=BACKWARDS, rules=rules).selected == ["f", "d", "e"]


def test_random_choices_are_of_the_size_and_every_source_has_its_turn():
    chosen = [random_select(additive, NAMES, seed=s, top_k=2).selected for s in range(60)]
    assert all(len(set(names)) == 2 for names in chosen)
    often = {name: sum(name in names for names in chosen) for name in NAMES}
    assert min(often.values()) > 8 and max(often.values()) < 35


def test_all_is_all_that_is_not_ruled_out():
    choice = select_all(additive, NAMES)
    assert choice.selected == NAMES and choice.value == additive([frozenset(NAMES)])[0]
    assert select_all(additive, NAMES, rules=Rules(never=frozenset("b"))).selected == list("acdef")
    with pytest.raises(GradexError, match="all 6 sources are more than the rules allow"):
        select_all(additive, NAMES, rules=Rules(max_sources=5))
