"""A population of subsets to hold estimates against: their scale, and which sources move them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset, membership, sample_subsets
from gradex.estimators.protocol import Estimator

SUBSETS = 256
ROUNDING = 1e-12  # of an estimate


def reference_subsets(sources: Sequence[str]) -> list[Subset]:
    """Random half-size subsets, the same for the same sources in any order."""
    return sample_subsets(sorted(sources), SUBSETS, sizes=[0.5], seed=0)


@dataclass(frozen=True)
class Scale:
    """Middle and spread of the estimates of the population, by target."""

    middle: Float[np.ndarray, " target"]
    spread: Float[np.ndarray, " target"]

    def standard(
        self, value: Float[np.ndarray, "subset target"]
    ) -> Float[np.ndarray, "subset target"]:
        return (value - self.middle) / self.spread

    def back(self, value: Float[np.ndarray, "subset target"]) -> Float[np.ndarray, "subset target"]:
        return self.middle + self.spread * value


def scale_of(value: Float[np.ndarray, "subset target"]) -> Scale:
    """Estimates that are all the same, as those of one source can be, keep their distance: what
    rounding makes of them is no spread."""
    middle, spread = value.mean(0), value.std(0)
    return Scale(middle, np.where(spread > ROUNDING * np.abs(middle), spread, 1.0))


def effects(fitted: Estimator, sources: Sequence[str]) -> Float[np.ndarray, "source target"]:
    """How far a source moves the standardised estimate: the slope on its membership."""
    population = reference_subsets(sources)
    value = fitted.predict(population).value
    member = membership(population, sources)
    apart = member - member.mean(0)
    squares = (apart**2).sum(0)[:, None]
    return apart.T @ scale_of(value).standard(value) / np.where(squares > 0, squares, 1.0)
