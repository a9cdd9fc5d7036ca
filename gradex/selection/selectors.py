"""Searches for the best subset of sources, given a function that scores subsets.

A selector knows nothing of gradients: `score(subsets)` returns one number a subset, lower is
better, and is called with as many subsets at once as possible.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset, membership
from gradex.errors import GradexError
from gradex.selection.choice import Choice

Score = Callable[[Sequence[Subset]], Float[np.ndarray, " subset"]]


def forward_select(
    score: Score, names: Sequence[str], *, max_sources: int | None = None, min_gain: float = 0.01
) -> Choice:
    """Forward stepwise: at every step the source that helps most, until none helps.

    A step must lower the score by `min_gain` of the whole fall, counted from the worst single
    source. `scores` are the estimates of the single sources; the trace holds every step with its
    best candidates.
    """
    chosen: list[str] = []
    trace: list[dict[str, Any]] = []
    value, begun_at, scores = float("inf"), 0.0, {}
    while len(chosen) < min(max_sources or len(names), len(names)):
        rest = [name for name in names if name not in chosen]
        values = score([frozenset([*chosen, name]) for name in rest])
        order = np.argsort(values, kind="stable")
        best = float(values[order[0]])
        if not chosen:
            scores = dict(zip(rest, map(float, values), strict=True))
            begun_at = float(np.max(values))
        elif value - best <= min_gain * abs(begun_at - value):
            break
        value = best
        chosen.append(rest[order[0]])
        trace.append(_step(chosen, value, {rest[i]: float(values[i]) for i in order[:5]}))
    return Choice(chosen, value, scores, trace)


def _step(chosen: list[str], value: float, candidates: dict[str, float]) -> dict[str, Any]:
    return {"step": len(chosen), "added": chosen[-1], "value": value, "candidates": candidates}


def random_ensemble(score: Score, names: Sequence[str], *, subsets: Sequence[Subset]) -> Choice:
    """Sources ranked by how the mean score differs with and without them; the best prefix wins.

    The trace holds the estimate of every prefix of the ranking.
    """
    member = membership(subsets, names)
    counts = member.sum(0)
    _require_seen(names, counts, len(subsets))
    values = score(subsets)
    with_source = member.T @ values / counts
    without = (1 - member).T @ values / np.maximum(len(subsets) - counts, 1)
    effects = np.where(counts < len(subsets), with_source - without, 0)
    order = [int(i) for i in np.argsort(effects, kind="stable")]
    prefixes = [frozenset(names[i] for i in order[:size]) for size in range(1, len(order) + 1)]
    totals = score(prefixes)
    best = int(np.argmin(totals))
    trace = [
        {"step": size + 1, "added": names[i], "value": float(totals[size]), "count": int(counts[i])}
        for size, i in enumerate(order)
    ]
    scores = {name: float(effect) for name, effect in zip(names, effects, strict=True)}
    return Choice([names[i] for i in order[: best + 1]], float(totals[best]), scores, trace)


def _require_seen(names: Sequence[str], counts: np.ndarray, total: int) -> None:
    unseen = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if unseen:
        raise GradexError(
            f"{unseen[0]} is in none of the {total} subsets, so that its effect is unknown; sample "
            "more of them (--num_subsets)"
        )


def select_all(score: Score, names: Sequence[str]) -> Choice:
    """Every source: what a selection has to beat."""
    return Choice(list(names), float(score([frozenset(names)])[0]))
