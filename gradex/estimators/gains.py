"""How sure a gain is: 90% intervals of what one subset's value lies above another's.

The two values share most of their error, so that the difference is surer than either. What is told
depends on the estimator:

first-order  A target's value is a mean over its rows of g z, and a gain the mean of g (z - z').
             Student's interval of a mean over pairs: it knows of the choice of the target's rows,
             and nothing of how far a first-order change is from a fine-tune. Over several points
             the rows are the same ones, and a row's change is averaged as values are.
calibrated   The process's own posterior of the difference, of which it knows what the anchors
             say about the estimate's errors; without the noise of single fine-tunes.

Others (baselines, fits to true runs) know no such error. Targets are taken as independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from gradex.data.subsets import Subset
from gradex.estimators.anchored import LEVEL
from gradex.estimators.averaged import Averaged
from gradex.estimators.calibrated import Calibrated
from gradex.estimators.protocol import Estimator, members
from gradex.estimators.regression import Regression, target_rows
from gradex.gradients.store import Block, GradientStore

# Two subsets, before and after: the interval of value(before) - value(after).
GainInterval = Callable[[Subset, Subset], tuple[float, float]]
Rows = Float[np.ndarray, "_ dim"]


def gain_interval(
    fitted: Estimator,
    store: GradientStore,
    targets: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    spreads: Sequence[float] | None = None,
    split: str = "select",
) -> GainInterval | None:
    """Of the weighted mean over the targets of the estimator's values, each in units of its spread
    where spreads are given. None where the estimator cannot tell, or a target has a single row."""
    counts = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=np.float64)
    factors = counts / counts.sum() / (1.0 if spreads is None else np.asarray(spreads))
    if isinstance(fitted, Calibrated):
        return _of_process(fitted, targets, factors)
    points = _points(fitted, store, targets)
    if not points:
        return None
    rows = [_rows(points, [p.store.target(name, split) for p in points]) for name in targets]
    if min(len(at_points[0]) for at_points in rows) < 2:
        return None
    return _of_rows(points, rows, factors)


@dataclass(frozen=True)
class _Point:
    """One point's regression; `shares` are what its gain counts in the target's."""

    fitted: Regression
    store: GradientStore
    shares: Float[np.ndarray, " target"]


def _points(fitted: Estimator, store: GradientStore, targets: Sequence[str]) -> list[_Point]:
    """Those that the estimate is an average of; none where it is no first-order change."""
    if isinstance(fitted, Regression):
        return [_Point(fitted, store, np.ones(len(targets)))]
    if not isinstance(fitted, Averaged):
        return []
    column = [fitted.targets_.index(name) for name in targets]
    spreads = np.stack([scale.spread[column] for scale in fitted.scales_])
    shares = spreads[0] / spreads / len(spreads)
    stores = [store, *store.points()]
    points = zip(fitted.fitted_, stores, shares, strict=True)
    return [_Point(*point) for point in points if isinstance(point[0], Regression)]


def _rows(points: Sequence[_Point], blocks: Sequence[Block]) -> list[Rows]:
    """One target's rows as each point sees them: those that are good at all points."""
    ids = [block.table["id"] for block in blocks]
    shared = set(ids[0].tolist()).intersection(*(some.tolist() for some in ids[1:]))
    return [
        target_rows(block, point.fitted.target_norm)[np.isin(names, list(shared))]
        for point, block, names in zip(points, blocks, ids, strict=True)
    ]


def _of_rows(
    points: Sequence[_Point], targets: Sequence[list[Rows]], factors: Float[np.ndarray, " target"]
) -> GainInterval:
    degrees = min(len(rows[0]) for rows in targets) - 1
    quantile = student.ppf((1 + LEVEL) / 2, degrees)

    def interval(before: Subset, after: Subset) -> tuple[float, float]:
        moves = [_move(point.fitted, before, after) for point in points]
        gain = variance = 0.0
        for column, rows in enumerate(targets):
            changes = sum(
                point.shares[column] * (seen @ move)
                for point, seen, move in zip(points, rows, moves, strict=True)
            )
            gain += factors[column] * changes.mean()
            variance += factors[column] ** 2 * changes.var(ddof=1) / len(changes)
        reach = quantile * np.sqrt(variance)
        return float(gain - reach), float(gain + reach)

    return interval


def _move(fitted: Regression, before: Subset, after: Subset) -> Float[np.ndarray, " dim"]:
    first, second = fitted.displacements(members([before, after], fitted.sources_))
    return first - second


def _of_process(
    fitted: Calibrated, targets: Sequence[str], factors: Float[np.ndarray, " target"]
) -> GainInterval:
    columns = [fitted.targets_.index(name) for name in targets]

    def interval(before: Subset, after: Subset) -> tuple[float, float]:
        gain, low, high = fitted.gains(before, after)[:, columns] * factors
        below, above = np.linalg.norm(gain - low), np.linalg.norm(high - gain)
        return float(gain.sum() - below), float(gain.sum() + above)

    return interval
