"""Local search: from any start add, drop and exchange sources until no such move lowers the score.

Sources that only help together are found, which forward selection cannot do, as neither is worth
having alone. The larger neighbourhoods are looked at when the smaller ones hold nothing better:

    single moves: one source is added or dropped
    exchanges: one for another
    pairs: two are added, or two dropped, at once
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, islice, product
from math import comb

import numpy as np

from gradex.data.subsets import Subset
from gradex.errors import GradexError, unknown
from gradex.selection.choice import Choice
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score, evaluating_once
from gradex.selection.trace import SHOWN, Step, stop

MOST_MOVES = 20_000  # tried of one neighbourhood: all of up to 200 sources
MAX_ROUNDS = 200
NOISE = 1e-9  # of a score: what is gained by less may be rounding
Move = tuple[Sequence[str], Sequence[str]]  # added, dropped


def swap_select(
    score: Score,
    names: Sequence[str],
    *,
    start: Iterable[str],
    rules: Rules = NO_RULES,
    max_rounds: int = MAX_ROUNDS,
) -> Choice:
    """Make the best move of the first neighbourhood that holds a better subset, until none does.

    Where a neighbourhood has more than MOST_MOVES, those whose sources are best by single moves are
    tried; the trace counts the ones `skipped`. `scores` are what each source changes at the end.
    """
    rules.require_possible(names)
    chosen, names = _checked(start, names, rules), rules.allowed(names)
    score = evaluating_once(score)
    trace: list[Step] = [
        {"step": 0, "start": _ordered(chosen, names), "value": float(score([chosen])[0])}
    ]
    for _ in range(max_rounds):
        best = _best_move(score, chosen, names, rules=rules, value=trace[-1]["value"])
        if not _lower(best, trace[-1]["value"]):
            stop(trace, "no move lowers the score", refused=best)
            break
        chosen = _moved(chosen, (best["added"], best["removed"]))
        trace.append({"step": len(trace), **best})
    else:
        stop(trace, f"the number of rounds, {max_rounds}, is used up")
    return Choice(
        _ordered(chosen, names), trace[-1]["value"], _effects(score, chosen, names), trace
    )


def _checked(start: Iterable[str], names: Sequence[str], rules: Rules) -> Subset:
    chosen = frozenset(start)
    for name in sorted(chosen.difference(names)):
        raise unknown("source", name, names, "--start")
    if not rules.allows(chosen):
        raise GradexError(
            f"--start: its {len(chosen)} sources do not keep to the rules (--must, --never, "
            "--max_sources, --budget, --min_share, --max_share); start from ones that do"
        )
    return chosen


def _best_move(
    score: Score, chosen: Subset, names: Sequence[str], *, rules: Rules, value: float
) -> Step | None:
    """The best step of the first neighbourhood that improves on the value; else of the last."""
    best = None
    for moves, skipped in neighbourhoods(score, chosen, names):
        allowed = [move for move in moves if rules.allows(_moved(chosen, move))]
        if allowed:
            best = _step(score, chosen, allowed, skipped=skipped)
        if _lower(best, value):
            break
    return best


def neighbourhoods(
    score: Score, chosen: Subset, names: Sequence[str]
) -> Iterator[tuple[list[Move], int]]:
    """The moves of each, those of the best sources first, and how many are left out."""
    drops = [((), (name,)) for name in names if chosen - {name} != chosen and len(chosen) > 1]
    adds = [((name,), ()) for name in names if name not in chosen]
    yield adds + drops, 0
    outside = [more[0] for more, _ in _ranked(score, chosen, adds)]
    inside = [less[0] for _, less in _ranked(score, chosen, drops)] or list(chosen)
    yield _first(
        (((more,), (less,)) for more, less in product(outside, inside)),
        len(outside) * len(inside),
    )
    pairs = chain(
        ((pair, ()) for pair in combinations(outside, 2)),
        (((), pair) for pair in combinations(inside, 2) if len(inside) > 2),
    )
    yield _first(pairs, comb(len(outside), 2) + comb(len(inside), 2) * (len(inside) > 2))


def _first(moves: Iterable[Move], count: int) -> tuple[list[Move], int]:
    return list(islice(moves, MOST_MOVES)), max(0, count - MOST_MOVES)


def _ranked(score: Score, chosen: Subset, moves: Sequence[Move]) -> list[Move]:
    if not moves:
        return []
    values = score([_moved(chosen, move) for move in moves])
    return [moves[i] for i in np.argsort(values, kind="stable")]


def _step(score: Score, chosen: Subset, moves: Sequence[Move], *, skipped: int) -> Step:
    values = score([_moved(chosen, move) for move in moves])
    best = [
        {"added": list(moves[i][0]), "removed": list(moves[i][1]), "value": float(values[i])}
        for i in np.argsort(values, kind="stable")[:SHOWN]
    ]
    return {**best[0], "candidates": best, "tried": len(moves), "skipped": skipped}


def _moved(chosen: Subset, move: Move) -> Subset:
    added, dropped = move
    return chosen.difference(dropped).union(added)


def _lower(step: Step | None, value: float) -> bool:
    return step is not None and step["value"] < value - NOISE * abs(value)


def _ordered(subset: Subset, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in subset]


def _effects(score: Score, chosen: Subset, names: Sequence[str]) -> dict[str, float]:
    """The score with a source less that without it, beside the others that are chosen."""
    rest = [name for name in names if chosen - {name}]
    pairs = [subset for name in rest for subset in (chosen | {name}, chosen - {name})]
    values = score(pairs).reshape(-1, 2) if pairs else np.empty((0, 2))
    return dict(zip(rest, (values[:, 0] - values[:, 1]).tolist(), strict=True))
