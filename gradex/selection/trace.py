"""The trace of a search: a step a decision, from which the choice can be told again.

Every step has `step` (its number, 0 for where a search starts), `value` (the score after it) and
what it did: `added` or `removed`, a name, or lists of names where a step moves several. `start` is
what a search starts from. `candidates` are the best of what was `tried`; `skipped` counts what the
rules allow and was not. The last step has `stop`: the `reason`, and what was refused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradex.selection.scores import Score

Step = dict[str, Any]
SHOWN = 5  # candidates that a step keeps


def prefix_steps(score: Score, order: Sequence[str], **more: Any) -> list[Step]:
    """A step for every source of an order, with the score of all up to it."""
    prefixes = [frozenset(order[:size]) for size in range(1, len(order) + 1)]
    values = np.asarray(score(prefixes)).tolist() if prefixes else []
    return [
        {"step": place, "added": name, "value": value, **more}
        for place, (name, value) in enumerate(zip(order, values, strict=True), start=1)
    ]


def added(trace: Sequence[Step]) -> list[str]:
    """What a trace of single additions leads to."""
    return [step["added"] for step in trace]


def first_few(values: dict[str, float]) -> dict[str, float]:
    return dict(list(values.items())[:SHOWN])


def stop(trace: list[Step], reason: str, *, refused: Step | None = None) -> None:
    """Say in the last step why it is the last, and what the next one would have been."""
    trace[-1]["stop"] = {"reason": reason, **({"refused": refused} if refused else {})}
