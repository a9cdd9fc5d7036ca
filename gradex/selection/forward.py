"""Forward stepwise: from nothing, at every step the source that lowers the score most."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradex.estimators.gains import GainInterval
from gradex.selection.choice import Choice
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score, best_first
from gradex.selection.trace import SHOWN, Step, added, first_few, prefix_steps, stop
from gradex.selection.worth import MIN_GAIN, Gain, Worth

REFRESH = 5  # of so many steps one tries all candidates


def forward_select(
    score: Score,
    names: Sequence[str],
    *,
    rules: Rules = NO_RULES,
    min_gain: float = MIN_GAIN,
    gain_interval: GainInterval | None = None,
    screen: int | None = None,
) -> Choice:
    """Add the best source, step by step, until none gains more than `min_gain` of the fall so far.

    The fall is counted from the worst single source. Where intervals of gains are known, the last
    steps are taken back as long as the gain of all of them together is within its interval: what
    single steps gain may be in doubt when what they gain together is not. Sources of `must` come
    first. With `screen`,
    all that may be added are tried at the first step and every few steps from there; in between
    only so many, those that were best then. The search does not stop without trying all. `scores`
    are those of the single sources; the trace holds every step with its best candidates, how many
    were tried and how many skipped, and in the last one why it is the last.
    """
    rules.require_possible(names)
    names = rules.allowed(names)
    worth, shortlist = Worth(min_gain), _Shortlist(screen)
    scores = _with_each(score, [], names)
    trace = prefix_steps(score, rules.in_order(n for n in names if n in rules.must), why="must")
    while candidates := rules.additions(added(trace), names):
        tried = shortlist.of(candidates)
        values = best_first(_with_each(score, added(trace), tried, known=scores))
        shortlist.learn(values)
        step = _step(trace, values, skipped=len(candidates) - len(tried))
        gain = _gain(trace, step, worth, worst=max(scores.values()))
        if gain.doubt and rules.allows(added(trace)):
            if shortlist.forget():
                continue
            why = f"the best other is {step['added']}, and {gain.doubt}"
            stop(trace, why, refused=step | gain.recorded())
            break
        trace.append(step | gain.recorded())
    else:
        stop(trace, "the rules allow no other source" if len(trace) < len(names) else "all chosen")
    if gain_interval is not None:
        _take_back(trace, gain_interval, rules)
    return Choice(added(trace), trace[-1]["value"], scores, trace)


def _take_back(trace: list[Step], gain_interval: GainInterval, rules: Rules) -> None:
    """Cut the path to its shortest beginning that the rest does not surely improve."""
    whole = added(trace)
    for size in range(1, len(whole)):
        if not rules.allows(whole[:size]):
            continue
        low, high = map(float, gain_interval(frozenset(whole[:size]), frozenset(whole)))
        if low <= 0:
            rest = trace[size:]
            del trace[size:]
            more = f"{', '.join(whole[size:][:SHOWN])}{', ...' if rest[SHOWN:] else ''}"
            why = f"the 90% interval of their gain, {low:.4g} to {high:.4g}, is not above 0"
            stop(trace, f"without {more}: {why}", refused=rest[0])
            return


def _with_each(
    score: Score, chosen: list[str], names: Sequence[str], *, known: dict[str, float] | None = None
) -> dict[str, float]:
    """The score of the chosen with each of the names; those of single sources may be known."""
    if known and not chosen:
        return {name: known[name] for name in names}
    values = score([frozenset([*chosen, name]) for name in names])
    return dict(zip(names, np.asarray(values).tolist(), strict=True))


def _step(trace: list[Step], values: dict[str, float], *, skipped: int) -> Step:
    name, value = next(iter(values.items()))
    tried: dict[str, Any] = {"candidates": first_few(values), "tried": len(values)}
    return {"step": len(trace) + 1, "added": name, "value": value, **tried, "skipped": skipped}


def _gain(trace: list[Step], step: Step, worth: Worth, *, worst: float) -> Gain:
    """The first source is had in any case."""
    if not trace:
        return Gain(worst - step["value"])
    before, value = frozenset(added(trace)), trace[-1]["value"]
    having = before | {step["added"]}
    return worth.of(before, having, gain=value - step["value"], fall=abs(worst - value))


class _Shortlist:
    """Which candidates a step tries: all of them now and then, in between the best of that time."""

    def __init__(self, size: int | None):
        self.size, self.names, self.uses = size, frozenset[str](), 0

    def of(self, candidates: list[str]) -> list[str]:
        self.uses += 1
        short = [name for name in candidates if name in self.names and self.uses < REFRESH]
        if not short:
            self.uses = 0
        return short or candidates

    def learn(self, values: dict[str, float]) -> None:
        """Values of a step, the best first: where it tried all, they make the list."""
        if self.size and self.uses == 0:
            self.names = frozenset(list(values)[: self.size])

    def forget(self) -> bool:
        """The next step tries all; says whether the last one did not."""
        self.names = frozenset()
        return self.uses > 0
