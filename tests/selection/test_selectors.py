"""Selectors know only a score: additive scores, planted traps and rankings tell if they search."""

import numpy as np
import pytest

from gradex.data.subsets import sample_subsets
from gradex.errors import GradexError
from gradex.selection.selectors import forward_select, random_ensemble, select_all

NAMES = list("abcdef")
EFFECTS = dict(zip(NAMES, (-3.0, 2.0, -1.0, 0.5, -2.0, 1.0), strict=True))


def additive(subsets):
    return np.array([10 + sum(EFFECTS[name] for name in subset) for subset in subsets])


def test_forward_on_additive_scores_takes_every_helper_in_order():
    choice = forward_select(additive, NAMES)
    assert choice.selected == ["a", "e", "c"]
    assert choice.value == additive([frozenset("aec")])[0]
    assert choice.scores == {n: 10 + e for n, e in EFFECTS.items()}


def test_forward_stops_at_the_limit():
    assert forward_select(additive, NAMES, max_sources=2).selected == ["a", "e"]


def test_forward_stops_when_the_gain_is_small():
    assert forward_select(additive, NAMES, min_gain=0.3).selected == ["a", "e"]


def test_forward_tries_all_that_are_left_at_every_step():
    seen = []

    def score(subsets):
        seen.append(set(subsets))
        return additive(subsets)

    forward_select(score, NAMES)
    assert seen[0] == {frozenset(n) for n in NAMES}
    assert seen[1] == {frozenset(["a", n]) for n in NAMES if n != "a"}


def test_forward_replays_from_its_trace():
    choice = forward_select(additive, NAMES)
    for step in choice.trace:
        best = min(step["candidates"], key=step["candidates"].get)
        assert step["added"] == best and step["value"] == step["candidates"][best]


def test_the_order_of_the_names_does_not_matter_to_forward():
    assert forward_select(additive, NAMES[::-1]).selected == ["a", "e", "c"]


def test_ensemble_recovers_the_ranking_and_the_best_prefix():
    subsets = sample_subsets(NAMES, 60, sizes=[0.5], seed=0)
    choice = random_ensemble(additive, NAMES, subsets=subsets)
    assert choice.selected == ["a", "e", "c"]
    assert sorted(choice.scores, key=choice.scores.get) == ["a", "e", "c", "d", "f", "b"]
    assert all(step["count"] > 0 for step in choice.trace)


def test_ensemble_refuses_a_source_that_no_subset_holds():
    with pytest.raises(GradexError, match="f is in none of the 2 subsets"):
        random_ensemble(additive, NAMES, subsets=[frozenset("abc"), frozenset("cde")])


def test_all_is_all():
    choice = select_all(additive, NAMES)
    assert choice.selected == NAMES and choice.value == additive([frozenset(NAMES)])[0]
