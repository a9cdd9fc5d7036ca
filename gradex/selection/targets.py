"""Several targets as one number: what a search lowers when it is to serve them all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.estimators.protocol import Estimator
from gradex.estimators.reference import Scale, reference_subsets, scale_of
from gradex.selection.scores import Score


@dataclass(frozen=True)
class Together:
    """The weighted mean of the targets' values, or the worst of them, standardised where a scale
    is given."""

    weights: Float[np.ndarray, " target"]
    robust: bool = False
    scale: Scale | None = None

    def of(self, value: Float[np.ndarray, "subset target"]) -> Float[np.ndarray, " subset"]:
        if self.scale is not None:
            value = self.scale.standard(value)
        return value.max(1) if self.robust else value @ (self.weights / self.weights.sum())


def together(
    fitted: Estimator, sources: Sequence[str], weights: Sequence[float], *, robust: bool = False
) -> Together:
    """How the estimates of all targets make one number.

    Losses are averaged as they are. Uncalibrated values of two targets have no common unit, nor is
    a loss of one worse than a smaller one of another: they are standardised by middle and spread
    over random half-size subsets of the sources. One target is left as it is.
    """
    plain = Together(np.array(weights, dtype=np.float64), robust)
    if len(weights) == 1:
        return plain
    estimates = fitted.predict(reference_subsets(sources))
    if estimates.calibrated and not robust:
        return plain
    return replace(plain, scale=scale_of(estimates.value))


def score_of(fitted: Estimator, combined: Together) -> Score:
    """The score of a search: one number a subset."""

    def score(subsets: Sequence[Subset]) -> Float[np.ndarray, " subset"]:
        return combined.of(fitted.predict(subsets).value)

    return score
