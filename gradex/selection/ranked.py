"""Choices that go down a ranking: the best by a cheap score, any at random, all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradex.errors import GradexError
from gradex.selection.choice import Choice
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score, best_first
from gradex.selection.trace import prefix_steps, stop


def top_select(
    score: Score,
    names: Sequence[str],
    *,
    ranking: Mapping[str, float],
    rules: Rules = NO_RULES,
    top_k: int | None = None,
) -> Choice:
    """The `top_k` sources of the lowest ranking, or as many as the rules allow.

    The score chooses nothing: it tells the value of what is chosen.
    """
    ranked = best_first({name: ranking[name] for name in rules.allowed(names)})
    return _down(score, list(ranked), names, rules=at_most(rules, top_k), scores=ranked)


def random_select(
    score: Score, names: Sequence[str], *, seed: int, top_k: int, rules: Rules = NO_RULES
) -> Choice:
    """So many sources at random, the same for the same names in any order."""
    order = np.random.default_rng(seed).permutation(sorted(names)).tolist()
    return _down(score, order, names, rules=at_most(rules, top_k), scores={})


def select_all(score: Score, names: Sequence[str], *, rules: Rules = NO_RULES) -> Choice:
    """Every source that is not ruled out: what a selection has to beat."""
    rules.require_possible(names)
    chosen = rules.allowed(names)
    if not rules.allows(chosen):
        raise GradexError(
            f"all {len(chosen)} sources are more than the rules allow; choose among them with "
            "another --method, or leave out --max_sources, --budget and --min_share"
        )
    return Choice(chosen, float(score([frozenset(chosen)])[0]))


def at_most(rules: Rules, top_k: int | None) -> Rules:
    """The same rules with a limit that may be lower."""
    limits = [limit for limit in (rules.max_sources, top_k) if limit is not None]
    return replace(rules, max_sources=min(limits, default=None))


def _down(
    score: Score,
    ranked: Iterable[str],
    names: Sequence[str],
    *,
    rules: Rules,
    scores: Mapping[str, float],
) -> Choice:
    rules.require_possible(names)
    chosen = rules.in_order(ranked)
    trace = prefix_steps(score, chosen)
    stop(trace, f"these are the first {len(chosen)} that the rules allow")
    return Choice(chosen, trace[-1]["value"], dict(scores), trace)
