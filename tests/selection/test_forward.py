"""Forward selection on scores whose truth is known: what it takes, tries, skips and stops at."""

import numpy as np
import pytest
from toys import EFFECTS, NAMES, additive, counting, redundant

from gradex.selection.forward import REFRESH, forward_select
from gradex.selection.rules import Rules


def test_it_takes_every_helper_in_order():
    choice = forward_select(additive, NAMES)
    assert choice.selected == ["a", "e", "c"]
    assert choice.value == additive([frozenset("aec")])[0]
    assert choice.scores == {n: 10 + e for n, e in EFFECTS.items()}


def test_it_stops_at_the_limit():
    choice = forward_select(additive, NAMES, rules=Rules(max_sources=2))
    assert choice.selected == ["a", "e"]
    assert choice.trace[-1]["stop"] == {"reason": "the rules allow no other source"}


def test_it_stops_when_the_gain_is_small():
    choice = forward_select(additive, NAMES, min_gain=0.3)
    assert choice.selected == ["a", "e"]
    stop = choice.trace[-1]["stop"]
    assert stop["reason"].startswith("the best other is c, and its gain of 1 is at most 0.3 of")
    assert stop["refused"]["added"] == "c" and stop["refused"]["gain"] == 1


def test_it_tries_all_that_are_left_at_every_step():
    score, seen = counting(additive)
    forward_select(score, NAMES)
    assert seen[0] == {frozenset(n) for n in NAMES}
    assert seen[1] == {frozenset(["a", n]) for n in NAMES if n != "a"}


def within(reach):
    """Intervals of the additive score's gains, so far to each side."""

    def interval(before, after):
        (gain,) = additive([before]) - additive([after])
        return gain - reach, gain + reach

    return interval


def test_steps_whose_gain_is_within_its_interval_are_taken_back():
    choice = forward_select(additive, NAMES, gain_interval=within(1.5))
    assert choice.selected == ["a", "e"] and choice.value == additive([frozenset("ae")])[0]
    stop = choice.trace[-1]["stop"]
    assert "c: the 90% interval of their gain, -0.5 to 2.5, is not above 0" in stop["reason"]
    assert stop["refused"]["added"] == "c"


def test_steps_in_doubt_stay_where_they_surely_gain_together():
    """`e` gains 2 and `c` 1: less than the reach of the first interval, together more."""
    assert forward_select(additive, NAMES, gain_interval=within(2.5)).selected == ["a", "e"]
    assert forward_select(additive, NAMES, gain_interval=within(0.5)).selected == ["a", "e", "c"]
    assert forward_select(additive, NAMES, gain_interval=within(9)).selected == ["a"]


def test_of_a_redundant_pair_it_takes_one():
    assert forward_select(redundant, NAMES).selected == ["a"]


def test_what_must_be_comes_first_and_may_do_harm():
    choice = forward_select(additive, NAMES, rules=Rules(must=frozenset("bf")))
    assert choice.selected == ["b", "f", "a", "e", "c"]
    assert [step.get("why") for step in choice.trace] == ["must", "must", None, None, None]


def test_it_goes_on_where_the_rules_ask_for_more():
    """Shares of at most a fifth need five sources, though only three help."""
    choice = forward_select(additive, NAMES, rules=Rules(max_share=0.2))
    assert choice.selected == ["a", "e", "c", "d", "f"]


def test_a_source_too_large_for_the_budget_makes_room_for_others():
    sizes = dict(zip(NAMES, (9, 1, 4, 1, 4, 1), strict=True))
    choice = forward_select(additive, NAMES, rules=Rules(budget=8, sizes=sizes))
    assert choice.selected == ["e", "c"]
    assert choice.scores["a"] == 7  # single estimates know no budget


def test_equal_scores_are_taken_in_the_order_of_the_names():
    def flat(subsets):
        return np.array([-float(len(subset)) for subset in subsets])

    for names in (NAMES, NAMES[::-1]):
        choice = forward_select(flat, names, rules=Rules(max_sources=3), min_gain=-1.0)
        assert choice.selected == names[:3]


MANY = [f"s{i:02}" for i in range(40)]
WEIGHTS = np.random.default_rng(0).permutation(np.linspace(-2, 1, 40))


def of_many(subsets):
    place = {name: i for i, name in enumerate(MANY)}
    return np.array([WEIGHTS[[place[n] for n in subset]].sum() for subset in subsets])


def test_a_shortlist_tries_few_and_misses_nothing_in_additive_scores():
    whole = forward_select(of_many, MANY, min_gain=0.0)
    score, seen = counting(of_many)
    short = forward_select(score, MANY, min_gain=0.0, screen=8)
    assert short.selected == whole.selected and short.value == whole.value
    assert sum(map(len, seen)) < sum(step["tried"] for step in whole.trace) / 2
    for place, step in enumerate(short.trace):
        assert step["tried"] + step["skipped"] == 40 - place
        assert (step["skipped"] == 0) == (place % REFRESH == 0)
        assert step["tried"] <= 8 or not step["skipped"]


def test_a_shortlist_does_not_stop_the_search():
    """`f` is worth nothing until `a` is there: the list of the first step does not hold it."""

    def late(subsets):
        return np.array(
            [-4.0 * ("a" in s) - 3.0 * ({"a", "f"} <= s) + 0.1 * len(s) for s in subsets]
        )

    choice = forward_select(late, NAMES, screen=2)
    assert choice.selected == ["a", "f"]
    assert choice.trace[1]["skipped"] == 0


def test_the_first_step_has_no_gain_to_compare_with():
    choice = forward_select(lambda subsets: np.full(len(subsets), 2.0), NAMES)
    assert choice.selected == ["a"] and choice.value == 2


@pytest.mark.parametrize("screen", [None, 2])
def test_one_source_is_all_there_is(screen):
    choice = forward_select(additive, ["b"], screen=screen)
    assert choice.selected == ["b"] and choice.trace[-1]["stop"] == {"reason": "all chosen"}
