"""Backward stepwise: from all sources, at every step the one that the score can best do without."""

from collections.abc import Sequence

import numpy as np

from gradex.estimators.gains import GainInterval
from gradex.selection.choice import Choice
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score, best_first
from gradex.selection.steps import Step, first_few, stop
from gradex.selection.worth import MIN_GAIN, Gain, Worth


def backward_select(
    score: Score,
    names: Sequence[str],
    *,
    rules: Rules = NO_RULES,
    min_gain: float = MIN_GAIN,
    gain_interval: GainInterval | None = None,
) -> Choice:
    """Take out the source without which the score is lowest, until all are worth having (see Worth)
    and the rules are kept.

    The fall is counted from the worst subset of the first step. `scores` are what each source adds
    to the score of the others; the trace begins with all sources.
    """
    rules.require_possible(names)
    chosen = rules.allowed(names)
    worth, value, worst = Worth(min_gain, gain_interval), float(score([frozenset(chosen)])[0]), None
    trace: list[Step] = [{"step": 0, "start": list(chosen), "value": value}]
    scores: dict[str, float] = {}
    while candidates := rules.removals(chosen):
        values = best_first(_without_each(score, chosen, candidates))
        scores = scores or {name: value - values[name] for name in candidates}
        worst = max(values.values()) if worst is None else worst
        step = _step(trace, values)
        gain = _gain(chosen, step, worth, value=value, worst=worst)
        if not gain.doubt and rules.allows(chosen):
            stop(trace, f"{step['removed']}, the first to go, is worth having", refused=step)
            break
        chosen.remove(step["removed"])
        value = step["value"]
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


def _gain(chosen: Sequence[str], step: Step, worth: Worth, *, value: float, worst: float) -> Gain:
    """What the source that would go gives to the others."""
    having = frozenset(chosen)
    gain, fall = step["value"] - value, abs(worst - value)
    return worth.of(having - {step["removed"]}, having, gain=gain, fall=fall)
