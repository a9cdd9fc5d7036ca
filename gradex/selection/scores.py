"""What a search is given: functions that put numbers on subsets, lower is better."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from gradex.data.subsets import Subset

Score = Callable[[Sequence[Subset]], Float[np.ndarray, " subset"]]
TargetScore = Callable[[Sequence[Subset]], Float[np.ndarray, "subset target"]]
AnyScore = TypeVar("AnyScore", Score, TargetScore)


def evaluating_once(score: AnyScore) -> AnyScore:
    """The same score, which is asked for each distinct subset only once."""
    known: dict[int, np.ndarray | np.float64] = {}
    bits: dict[str, int] = {}

    def key(subset: Subset) -> int:
        # A set of names is a number here: tens of thousands of frozensets would fill the memory.
        return sum(bits.setdefault(name, 1 << len(bits)) for name in subset)

    def evaluate(subsets: Sequence[Subset]) -> Shaped[np.ndarray, "subset ..."]:
        keys = [key(subset) for subset in subsets]
        fresh = {k: subset for k, subset in zip(keys, subsets, strict=True) if k not in known}
        if fresh:
            known.update(zip(fresh, score(list(fresh.values())), strict=True))
        return np.stack([known[k] for k in keys])

    return evaluate


def best_first(values: dict[str, float]) -> dict[str, float]:
    """The same, the lowest first; equal ones stay in their order."""
    return dict(sorted(values.items(), key=lambda item: item[1]))
