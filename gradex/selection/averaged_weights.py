"""Weights of sources averaged over resampled rows, for one target or for several at once.

A weighting that is solved once follows the noise of its mean gradients: `balance` jumps from one
source to another. The mean over resamples is steady, and their spread tells how sure each weight
is. Several targets become one by their shortest mixture (see pareto), the direction that lowers all
of their losses.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradex.gradients.resampled_means import SourceMeans, TargetMeans
from gradex.progress import progress
from gradex.selection.pareto import Weights, min_norm
from gradex.selection.weighing import Weighing, effects_of, weigh_sources

INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class AveragedWeights:
    """The mean weights with what they do for the means of all rows, and how the draws differ.

    Without resamples the weights are those of all rows, and low and high are nan. `active` is the
    share of the draws in which a source's bound held the others back, `support` their mean number
    of sources, `target_shares` the targets' in their common direction. `alone` is how far a step
    for each source alone lowers the targets' loss, `cosines` that without the lengths.
    """

    weighing: Weighing
    low: Weights
    high: Weights
    active: Weights
    support: float
    target_shares: Float[np.ndarray, " target"]
    alone: Weights
    cosines: Weights


def averaged_weights(method: str, sources: SourceMeans, targets: TargetMeans) -> AveragedWeights:
    """Solve anew for each resample of sources and targets together, and average."""
    first = 1 if len(sources) > 1 else 0
    solved, shares = [], []
    with progress("weights", len(sources) - first, unit="resample") as bar:
        for rows, wanted in zip(sources[first:], targets[first:], strict=True):
            shares.append(target_shares(wanted))
            gram, b = products(rows, shares[-1] @ wanted)
            solved.append(weigh_sources(method, gram, b))
            bar.update()
    direction = np.mean(shares, axis=0) @ targets[0].astype(np.float64)
    gram, b = products(sources[0], direction)
    weights = np.stack([one.weights for one in solved])
    low, high = np.quantile(weights, INTERVAL, axis=0) if first else np.full((2, len(b)), np.nan)
    return AveragedWeights(
        effects_of(weights.mean(0), gram, b),
        low,
        high,
        active=np.mean([one.active for one in solved], axis=0),
        support=float(np.mean([one.support for one in solved])),
        target_shares=np.mean(shares, axis=0),
        alone=b,
        cosines=b / np.sqrt(np.diag(gram)) / np.linalg.norm(direction),
    )


def products(
    rows: Float[np.ndarray, "source dim"], wanted: Float[np.ndarray, " dim"]
) -> tuple[Float[np.ndarray, "source source"], Weights]:
    """gram and b of mean gradients, summed in float64."""
    exact = rows.astype(np.float64)
    return exact @ exact.T, exact @ wanted.astype(np.float64)


def target_shares(wanted: Float[np.ndarray, "target dim"]) -> Float[np.ndarray, " target"]:
    """The shares of the targets in the direction that lowers all of their losses."""
    if len(wanted) == 1:
        return np.ones(1)
    return min_norm(products(wanted, wanted[0])[0])
