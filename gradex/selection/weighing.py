"""What a weighting of sources does, to each of them and to the target: see pareto for the symbols.

A solved weighting says more than its weights: which sources it moves against, which bound stopped
it from doing more for the target, and whether it is a mixture at all or a single source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from gradex.errors import unknown
from gradex.selection import pareto
from gradex.selection.pareto import Gram, Products, Weights

Solver = Callable[[Gram, Products], Weights]
SOLVERS: dict[str, Solver] = {
    "match": pareto.match_weights,
    "balance": pareto.balance_weights,
    "cosine": pareto.cosine_weights,
}
TIGHT = 1e-6  # of the longest gradient's square: a bound that is this near holds the weights back
NOTHING = 1e-9  # a weight that is rounding


@dataclass(frozen=True)
class Weighing:
    """Weights a, and what a unit step along -d = -G^T a does, to first order.

    `falls` is how far each source's loss falls, g_i . d: below zero, the step works against that
    source. `target_falls` is the same for the target. `active` are the sources whose bound kept the
    linear program from doing more for the target; the other methods have no bounds.
    """

    weights: Weights
    falls: Products
    target_falls: float
    active: Bool[np.ndarray, " source"]

    @property
    def least_fall(self) -> float:
        return float(self.falls.min())

    @property
    def support(self) -> int:
        """How many sources have a weight; 1 is a vertex of the simplex."""
        return int((self.weights > NOTHING).sum())


def weigh_sources(method: str, gram: Gram, b: Products) -> Weighing:
    """Weights by one of SOLVERS, and what they do."""
    if method not in SOLVERS:
        raise unknown("method", method, SOLVERS)
    return effects_of(SOLVERS[method](gram, b), gram, b, bounded=method == "balance")


def effects_of(weights: Weights, gram: Gram, b: Products, *, bounded: bool = False) -> Weighing:
    """What given weights do; `bounded`: by the bounds of `balance`."""
    falls = gram @ weights
    bounds = pareto.balance_bounds(b) if bounded else np.full(len(b), -np.inf)
    active = falls - bounds <= TIGHT * np.diag(gram).max()
    return Weighing(weights, falls, float(b @ weights), active)


@dataclass(frozen=True)
class Conflict:
    """Two whose mean gradients point apart: a step for one raises the other's loss."""

    first: str
    second: str
    cosine: float


def cosines(gram: Gram) -> Float[np.ndarray, "source source"]:
    lengths = np.sqrt(np.diag(gram))
    return gram / np.outer(lengths, lengths)


def conflicts(gram: Gram, names: Sequence[str]) -> list[Conflict]:
    """The pairs with a negative cosine, the worst first."""
    cosine = cosines(gram)
    pairs = [
        Conflict(names[i], names[j], float(cosine[i, j]))
        for i, j in combinations(range(len(names)), 2)
        if cosine[i, j] < 0
    ]
    return sorted(pairs, key=lambda pair: pair.cosine)


def common_ground(gram: Gram) -> float:
    """The length of the shortest mixture over that of the shortest gradient.

    Near 0 no step lowers all losses (Pareto-stationary); at 1 the shortest gradient is itself such
    a step.
    """
    weights = pareto.min_norm(gram)
    square = max(float(weights @ gram @ weights), 0.0)
    return float(np.sqrt(square / np.diag(gram).min()))
