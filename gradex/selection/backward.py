"""Backward stepwise: from all sources, at every step the one that the score can best do without."""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from gradex.data.subsets import Subset
from gradex.estimators.gains import GainInterval
from gradex.selection.choice import Choice
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score, best_first
from gradex.selection.trace import Step, first_few, stop
from gradex.selection.worth import MIN_GAIN, Gain, Worth


def backward_select(
    score: Score,
    names: Sequence[str],
    *,
    rules: Rules = NO_RULES,
    min_gain: float = MIN_GAIN,
    gain_interval: GainInterval | None = None,
) -> Choice:
    """Take out the source without which the score is lowest, until what is left would be surely
    worse than the best that was seen (see Worth), and the rules are kept.

    The fall is counted from the worst subset of the first step. `scores` are what each source adds
    to the score of the others; the trace begins with all sources.
    """
    rules.require_possible(names)
    chosen = rules.allowed(names)
    worth, worst = Worth(min_gain, gain_interval), None
    value = float(score([frozenset(chosen)])[0])
    best = frozenset(chosen), value
    trace: list[Step] = [{"step": 0, "start": list(chosen), "value": value}]
    scores: dict[str, float] = {}
    while candidates := rules.removals(chosen):
        values = best_first(_without_each(score, chosen, candidates))
        scores = scores or {name: value - values[name] for name in candidates}
        worst = max(values.values()) if worst is None else worst
        step = _step(trace, values)
        gain = _gain(chosen, step, worth, best=best, worst=worst)
        if not gain.doubt and rules.allows(chosen):
            stop(trace, f"{step['removed']}, the first to go, is worth having", refused=step)
            break
        chosen.remove(step["removed"])
        value = step["value"]
        best = min(best, (frozenset(chosen), value), key=itemgetter(1))
        trace.append(step | gain.recorded())
    else:
        stop(trace, "the rules allow no fewer sources")
    return Choice(chosen, value, scores, trace)


def _without_each(score: Score, chosen: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    whole = frozenset(chosen)
    values = score([whole - {name} for name in names])
    return dict(zip(names, np.asarray(values).tolist(), strict=True))


def _step(trace: Sequence[Step], values: dict[str, float]) -> Step:
    name, value = next(iter(values.items()))
    return {
        "step": len(trace), "removed": name, "value": value, "candidates": first_few(values),
        "tried": len(values), "skipped": 0,
    }  # fmt: skip


def _gain(
    chosen: Sequence[str], step: Step, worth: Worth, *, best: tuple[Subset, float], worst: float
) -> Gain:
    """What the best subset so far has over that without the source that would go: losses that are
    each in doubt are not when they add up."""
    subset, value = best
    without = frozenset(chosen) - {step["removed"]}
    return worth.of(without, subset, gain=step["value"] - value, fall=abs(worst - value))
