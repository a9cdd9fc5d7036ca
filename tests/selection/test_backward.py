"""Backward selection on scores whose truth is known: what goes, in which order, and what stays."""

import numpy as np
from toys import EFFECTS, NAMES, additive, redundant

from gradex.selection.backward import backward_select
from gradex.selection.rules import Rules


def removed(choice):
    return [step["removed"] for step in choice.trace[1:]]


def test_the_most_harmful_goes_first_and_helpers_stay():
    choice = backward_select(additive, NAMES)
    assert removed(choice) == ["b", "f", "d"] and choice.selected == ["a", "c", "e"]
    assert choice.scores == EFFECTS and choice.trace[0]["start"] == NAMES
    stop = choice.trace[-1]["stop"]
    assert stop["reason"] == "c, the first to go, is worth having"
    assert stop["refused"]["removed"] == "c" and stop["refused"]["value"] == 5


def test_a_source_that_helps_too_little_goes_too():
    """Without `c` the score rises by 1, after a fall by 6.5 from the worst of the first step."""
    assert backward_select(additive, NAMES, min_gain=0.15).selected == ["a", "c", "e"]
    choice = backward_select(additive, NAMES, min_gain=0.16)
    assert choice.selected == ["a", "e"] and choice.trace[-1]["gain"] == 1


def test_a_source_whose_gain_may_be_none_goes_too():
    def interval(before, after):
        (gain,) = additive([before]) - additive([after])
        return gain - 1.5, gain + 1.5

    choice = backward_select(additive, NAMES, gain_interval=interval)
    assert choice.selected == ["a", "e"]
    assert choice.trace[-1]["interval"] == [-0.5, 2.5]
    assert choice.trace[-1]["stop"]["refused"]["removed"] == "e"


def test_losses_in_doubt_add_up_to_one_that_is_not():
    """Every source gains 1, give or take 1.5: one may go, and two may not."""

    def score(subsets):
        return np.array([-float(len(subset)) for subset in subsets])

    def interval(before, after):
        return len(after) - len(before) - 1.5, len(after) - len(before) + 1.5

    choice = backward_select(score, NAMES, gain_interval=interval)
    assert len(choice.selected) == len(NAMES) - 1


def test_of_a_redundant_pair_one_stays():
    assert backward_select(redundant, NAMES).selected == ["b"]


def test_helpers_go_until_the_rules_are_kept():
    choice = backward_select(additive, NAMES, rules=Rules(max_sources=1))
    assert removed(choice) == ["b", "f", "d", "c", "e"] and choice.selected == ["a"]
    sizes = dict(zip(NAMES, (9, 1, 4, 1, 4, 1), strict=True))
    choice = backward_select(additive, NAMES, rules=Rules(budget=8, sizes=sizes))
    assert sum(sizes[name] for name in choice.selected) <= 8


def test_harmful_sources_stay_where_the_rules_ask_for_them():
    choice = backward_select(additive, NAMES, rules=Rules(must=frozenset("b"), max_share=0.2))
    assert choice.selected == ["a", "b", "c", "d", "e"]
    assert choice.trace[-1]["stop"] == {"reason": "the rules allow no fewer sources"}
