"""The random ensemble: means over the subsets that hold a source, and where its ranking is cut."""

import numpy as np
import pytest
from toys import EFFECTS, NAMES, additive

from gradex.data.subsets import sample_subsets
from gradex.errors import GradexError
from gradex.selection.random_ensemble import random_ensemble, tally_of
from gradex.selection.rules import Rules

SUBSETS = sample_subsets(NAMES, 20, sizes=[0.5], seed=0)  # all there are of three
RANKED = ["a", "e", "c", "d", "f", "b"]


def test_it_recovers_the_ranking_and_the_best_prefix():
    choice = random_ensemble(additive, NAMES, subsets=SUBSETS)
    assert choice.selected == ["a", "e", "c"]
    assert sorted(choice.scores, key=choice.scores.get) == RANKED
    assert [step["added"] for step in choice.trace] == RANKED
    assert choice.trace[-1]["stop"]["reason"] == "the first 3 of the ranking score best"


def test_counts_means_and_intervals_are_those_of_a_slow_loop():
    subsets = SUBSETS[:9]
    tally = tally_of(additive, NAMES, subsets)
    for place, name in enumerate(NAMES):
        having = additive([s for s in subsets if name in s])
        others = additive([s for s in subsets if name not in s])
        error = having.std(ddof=1) / np.sqrt(len(having))
        found = tally.recorded(name)
        assert found["count"] == len(having) and found["mean"] == pytest.approx(having.mean())
        low, high = having.mean() - 1.645 * error, having.mean() + 1.645 * error
        assert found["interval"] == pytest.approx([low, high])
        assert tally.effect[place] == pytest.approx(having.mean() - others.mean())


def test_over_all_subsets_of_a_size_effects_are_those_of_the_score():
    """Without a source, the others are in 3 of 5 places instead of 2: effects keep their order and
    distance, shifted and stretched by the same."""
    scores = random_ensemble(additive, NAMES, subsets=SUBSETS).scores
    slope = 6 / 5
    mean = np.mean(list(EFFECTS.values()))
    assert scores == pytest.approx({n: slope * (e - mean) for n, e in EFFECTS.items()})


def test_a_single_subset_has_no_interval_and_a_source_in_all_no_effect():
    subsets = [frozenset("abcdef"), frozenset("ab"), frozenset("abd")]
    tally = tally_of(additive, NAMES, subsets)
    assert tally.recorded("c")["interval"] is None and tally.recorded("c")["count"] == 1
    assert tally.recorded("a")["effect"] == 0


def test_so_many_are_taken_as_are_asked_for():
    for count in range(1, 7):
        choice = random_ensemble(additive, NAMES, subsets=SUBSETS, top_k=count)
        assert choice.selected == RANKED[:count]
    rules = Rules(must=frozenset("b"))
    assert random_ensemble(additive, NAMES, subsets=SUBSETS, rules=rules, top_k=2).selected == [
        "b", "a"
    ]  # fmt: skip


def test_effects_up_to_a_threshold_are_taken():
    scores = random_ensemble(additive, NAMES, subsets=SUBSETS).scores
    choice = random_ensemble(additive, NAMES, subsets=SUBSETS, threshold=scores["d"])
    assert choice.selected == RANKED[:4] and choice.value == additive([frozenset("aecd")])[0]
    with pytest.raises(GradexError, match=r"--threshold: 0 sources .* at least 1 are needed"):
        random_ensemble(additive, NAMES, subsets=SUBSETS, threshold=-9.0)
    with pytest.raises(GradexError, match=r"--threshold: 2 sources .* at least 4 are needed"):
        rules = Rules(max_share=0.25)
        random_ensemble(additive, NAMES, subsets=SUBSETS, threshold=scores["e"], rules=rules)


def test_a_source_that_no_subset_holds_is_refused():
    subsets = [frozenset("abc"), frozenset("cde")]
    with pytest.raises(GradexError, match="f is in none of the 2 subsets"):
        random_ensemble(additive, NAMES, subsets=subsets)
    choice = random_ensemble(additive, NAMES, subsets=subsets, rules=Rules(never=frozenset("f")))
    assert "f" not in choice.scores
