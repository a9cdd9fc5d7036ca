"""What holds for every selector: rules are kept, traces replay, additive scores give the best."""

import json
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import EFFECTS, NAMES, additive, redundant, synergetic, xor

from gradex.data.subsets import sample_subsets
from gradex.errors import GradexError
from gradex.selection.choice import Choice
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.selectors import (
    backward_select,
    forward_select,
    random_ensemble,
    random_select,
    select_all,
    surrogate_select,
    swap_select,
    top_select,
)

SUBSETS = sample_subsets(NAMES, 63, sizes=[1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6], seed=0)
Select = Callable[..., Choice]


def swap_from_any(score, names, *, rules=NO_RULES):
    """From the first subset that the rules allow."""
    start = next((s for s in every_subset(names) if rules.allows(s)), frozenset())
    return swap_select(score, names, start=start, rules=rules)


SEARCHES: dict[str, Select] = {
    "forward": forward_select,
    "backward": backward_select,
    "swap": swap_from_any,
    "random_ensemble": lambda *a, **k: random_ensemble(*a, subsets=SUBSETS, **k),
    "surrogate": lambda *a, **k: surrogate_select(*a, subsets=SUBSETS, **k),
    "topk": lambda *a, **k: top_select(*a, ranking=EFFECTS, top_k=3, **k),
}
ALL = SEARCHES | {
    "random": lambda *a, **k: random_select(*a, seed=1, top_k=4, **k),
    "all": select_all,
}


def every_subset(names):
    return [frozenset(c) for size in range(1, len(names) + 1) for c in combinations(names, size)]


@pytest.mark.parametrize("name", SEARCHES)
def test_additive_scores_give_the_sources_that_help(name):
    choice = SEARCHES[name](additive, NAMES)
    assert set(choice.selected) == set("ace") and choice.value == 4


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("k, best", [(1, "a"), (2, "ae"), (3, "aec")])
def test_additive_scores_give_the_top_k(name, k, best):
    choice = SEARCHES[name](additive, NAMES, rules=Rules(max_sources=k))
    assert set(choice.selected) == set(best)


@pytest.mark.parametrize("name", set(SEARCHES) - {"topk"})
def test_of_a_redundant_pair_one_is_chosen(name):
    choice = SEARCHES[name](redundant, NAMES)
    assert len({"a", "b"} & set(choice.selected)) == 1 and len(choice.selected) == 1


@pytest.mark.parametrize("name", set(SEARCHES) - {"topk"})
def test_a_synergetic_pair_is_found(name):
    assert set(SEARCHES[name](synergetic, NAMES).selected) == {"a", "b"}


def test_a_pair_that_helps_only_together_is_found_by_all_but_forward():
    assert forward_select(xor, NAMES).selected == ["c"]
    for name in ("backward", "swap", "surrogate"):
        assert set(SEARCHES[name](xor, NAMES).selected) == {"a", "b", "c"}, name


@st.composite
def any_rules(draw):
    some = st.none() | st.integers(1, 6)
    marks = draw(st.lists(st.sampled_from(["", "", "", "must", "never"]), min_size=6, max_size=6))
    return Rules(
        must=frozenset(n for n, mark in zip(NAMES, marks, strict=True) if mark == "must"),
        never=frozenset(n for n, mark in zip(NAMES, marks, strict=True) if mark == "never"),
        max_sources=draw(some),
        budget=draw(st.none() | st.integers(1, 30)),
        sizes={n: draw(st.integers(1, 10)) for n in NAMES},
        min_share=draw(st.sampled_from([None, 0.2, 1 / 3, 0.5])),
        max_share=draw(st.sampled_from([None, 0.3, 0.5, 0.7])),
    )


@settings(max_examples=120, deadline=None)
@given(rules=any_rules(), seed=st.integers(0, 99))
def test_every_selector_keeps_to_the_rules_or_says_that_nobody_can(rules, seed):
    table = np.random.default_rng(seed).normal(size=64)
    bits = {name: 1 << i for i, name in enumerate(NAMES)}

    def score(subsets):
        return np.array([table[sum(bits[n] for n in subset)] for subset in subsets])

    possible = [subset for subset in every_subset(NAMES) if rules.allows(subset)]
    for name, select in ALL.items():
        whole = frozenset(NAMES) - rules.never
        if not possible or (name == "all" and not rules.allows(whole)):
            with pytest.raises(GradexError):
                select(score, NAMES, rules=rules)
            continue
        if name in ("topk", "random") and min(map(len, possible)) > (3 if name == "topk" else 4):
            continue  # more sources are needed than asked for: refused, which test_rules looks at
        choice = select(score, NAMES, rules=rules)
        assert rules.allows(choice.selected), name
        assert len(set(choice.selected)) == len(choice.selected)
        assert choice.value == score([frozenset(choice.selected)])[0]


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_left_to_chance_or_to_the_order_of_the_names(name):
    one, same, other = (ALL[name](additive, n) for n in (NAMES, NAMES, NAMES[::-1]))
    assert one == same
    assert set(other.selected) == set(one.selected)


@pytest.mark.parametrize("name", ALL)
def test_one_source_is_all_there_is(name):
    assert ALL[name](additive, NAMES, rules=Rules(never=frozenset("abdef"))).selected == ["c"]


def replayed(trace):
    """The chosen sources, told from the steps alone."""
    chosen = []
    for step in trace:
        added, removed = (
            [moved] if isinstance(moved, str) else moved
            for moved in (step.get("added", []), step.get("removed", []))
        )
        chosen = [name for name in step.get("start", chosen) if name not in removed] + [*added]
    return set(chosen)


@pytest.mark.parametrize("score", [additive, redundant, synergetic, xor])
@pytest.mark.parametrize("name", ["forward", "backward", "swap", "surrogate", "topk", "random"])
def test_a_trace_leads_to_the_choice_and_its_value(name, score):
    choice = ALL[name](score, NAMES)
    assert replayed(choice.trace) == set(choice.selected)
    assert choice.trace[-1]["value"] == choice.value
    assert choice.trace[-1]["stop"]["reason"]
    assert all("stop" not in step for step in choice.trace[:-1])
    assert json.loads(json.dumps(choice.trace, allow_nan=False)) == choice.trace


@pytest.mark.parametrize("score", [additive, redundant, synergetic, xor])
@pytest.mark.parametrize("name", ["forward", "backward", "swap"])
def test_every_step_took_the_best_of_what_it_tried(name, score):
    """Each value can be asked for again, and no candidate was better."""
    choice = ALL[name](score, NAMES)
    for place, step in enumerate(choice.trace):
        assert step["value"] == score([frozenset(replayed(choice.trace[: place + 1]))])[0]
        if "candidates" in step:
            values = step["candidates"]
            values = values.values() if isinstance(values, dict) else [c["value"] for c in values]
            assert step["value"] == min(values)


@pytest.mark.parametrize("name", ALL)
def test_no_source_is_refused(name):
    with pytest.raises(GradexError, match="--never: names every source"):
        ALL[name](additive, NAMES, rules=Rules(never=frozenset(NAMES)))
