"""Calibrated estimates: losses or metrics in their own units, with 90% prediction intervals.

The estimator is tried with a few strengths; the one whose anchors predict one another best is
taken, the first unless another is better by more than chance. What the anchors came to is told
from select rows; estimates from other rows (verify's, of the test rows) go the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.data.true_runs import TrueRun, scores_of
from gradex.errors import GradexError, unknown
from gradex.estimators.anchored import (
    VARIANCES,
    Anchored,
    Points,
    Variances,
    anchor,
    fit_variances,
    left_out_densities,
    relevances,
    spread_out,
)
from gradex.estimators.outcomes import unbounded
from gradex.estimators.protocol import Estimates, Estimator, members, named_or_all
from gradex.estimators.reference import Scale, effects, reference_subsets, scale_of
from gradex.gradients.store import GradientStore

FEWEST_ANCHORS = 4
Candidates = Mapping[str, Callable[[], Estimator]]


class Calibrated:
    """See the module. `candidates` give unfitted estimators by what is tried, the usual one first;
    `anchors` are true fine-tunes."""

    def __init__(self, candidates: Candidates, anchors: Sequence[TrueRun], *, metric: str = "loss"):
        distinct = {run.subset for run in anchors}
        if len(distinct) < FEWEST_ANCHORS:
            raise GradexError(
                f"found {len(distinct)} anchors, a calibration needs at least {FEWEST_ANCHORS} "
                "true fine-tunes; run calibrate with more --anchors"
            )
        self.candidates, self.anchors, self.metric = candidates, anchors, metric

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Calibrated":
        sources, targets = named_or_all(store, sources, targets)
        outcomes = scores_of(self.anchors, targets, split="select", metric=self.metric)
        subsets = [run.subset for run in self.anchors]
        for name in sorted(frozenset().union(*subsets) - set(sources)):
            raise unknown("source", name, sources, "an anchor")
        fits = {
            name: _fit(
                make().fit(store, sources=sources, targets=targets),
                sources,
                subsets,
                unbounded(self.metric).of(outcomes),
            )
            for name, make in self.candidates.items()
        }
        self.chosen_ = choose({name: fit.densities for name, fit in fits.items()})
        best = fits[self.chosen_]
        self.targets_, self.anchored_, self.variances_ = targets, best.anchored, best.variances
        self.view_ = best.view
        if split != "select":
            other = self.candidates[self.chosen_]()
            fitted = other.fit(store, sources=sources, targets=targets, split=split)
            self.view_ = best.view.through(fitted)
        return self

    @property
    def inner(self) -> Estimator:
        """The fitted estimator whose values are turned into outcomes."""
        return self.view_.estimator

    def summary(self) -> dict[str, Any]:
        """What was chosen, and how well each anchor is told from the others: R^2 by target, on the
        scale of the outcomes."""
        errors = [one.left_out()[0] for one in self.anchored_]
        apart = [one.outcomes - one.outcomes.mean() for one in self.anchored_]
        shares = [
            float(1 - (error**2).sum() / (side**2).sum()) if np.ptp(one.outcomes) else None
            for one, error, side in zip(self.anchored_, errors, apart, strict=True)
        ]
        return {
            "metric": self.metric,
            "chosen": self.chosen_,
            "variances": dict(zip(VARIANCES, self.variances_.tolist(), strict=True)),
            "left_out_r2": dict(zip(self.targets_, shares, strict=True)),
        }

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        seen = self.view_.points(subsets)
        found = [one.predict(points) for one, points in zip(self.anchored_, seen, strict=True)]
        mean, reach = (np.stack(part, axis=1) for part in zip(*found, strict=True))
        back = unbounded(self.metric).back
        ends = back(mean - reach), back(mean + reach)
        return Estimates(
            self.targets_, back(mean), np.minimum(*ends), np.maximum(*ends), calibrated=True
        )

    def gains(self, before: Subset, after: Subset) -> Float[np.ndarray, "3 target"]:
        """What the value before lies above that after, and the ends of its 90% interval: distances
        on the scale without bounds, laid evenly about the middle of the two and brought back."""
        seen = self.view_.points([before, after])
        found = [
            (one.predict(points)[0].mean(), *one.difference(points[[0]], points[[1]]))
            for one, points in zip(self.anchored_, seen, strict=True)
        ]
        middle, apart, reach = np.array(found).T
        back = unbounded(self.metric).back
        gain, *ends = (
            back(middle + far / 2) - back(middle - far / 2)
            for far in (apart, apart - reach, apart + reach)
        )
        return np.stack([gain, np.minimum(*ends), np.maximum(*ends)])


@dataclass(frozen=True)
class View:
    """Subsets as the process sees them: standardised estimates and weighted memberships."""

    estimator: Estimator
    scale: Scale
    sources: list[str]
    weights: Float[np.ndarray, "source target"]

    def points(self, subsets: Sequence[Subset]) -> list[Points]:
        """By target."""
        estimate = self.scale.standard(self.estimator.predict(subsets).value)
        member = members(subsets, self.sources)
        return [
            Points(column, member * weights)
            for column, weights in zip(estimate.T, self.weights.T, strict=True)
        ]

    def through(self, fitted: Estimator) -> "View":
        """The same weights, by estimates from other rows, which have a scale of their own."""
        scale = scale_of(fitted.predict(reference_subsets(self.sources)).value)
        return View(fitted, scale, self.sources, self.weights)


def view_of(fitted: Estimator, sources: Sequence[str]) -> View:
    moved = effects(fitted, sources)
    weights = np.stack([relevances(column) for column in moved.T], axis=1)
    scale = scale_of(fitted.predict(reference_subsets(sources)).value)
    return View(fitted, scale, list(sources), weights)


def choose_anchors(
    fitted: Estimator, sources: Sequence[str], pool: Sequence[Subset], count: int
) -> list[Subset]:
    """The subsets of a pool from which all targets' processes learn most."""
    points = view_of(fitted, sources).points(pool)
    return [pool[index] for index in spread_out(points, count)]


@dataclass(frozen=True)
class _Fit:
    view: View
    variances: Variances
    anchored: list[Anchored]
    densities: Float[np.ndarray, " prediction"]  # of every anchor and target, given the others


def _fit(
    fitted: Estimator,
    sources: Sequence[str],
    subsets: Sequence[Subset],
    outcomes: Float[np.ndarray, "anchor target"],
) -> _Fit:
    view = view_of(fitted, sources)
    data = list(zip(view.points(subsets), outcomes.T, strict=True))
    variances = fit_variances(data)
    anchored = [anchor(points, column, variances) for points, column in data]
    densities = np.concatenate([left_out_densities(one) for one in anchored])
    return _Fit(view, variances, anchored, densities)


def choose(densities: Mapping[str, Float[np.ndarray, " prediction"]]) -> str:
    """The first, unless another predicts better by more than a standard error of the difference."""
    first = next(iter(densities))
    best = max(densities, key=lambda name: densities[name].mean())
    gain = densities[best] - densities[first]
    by_chance = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return best if gain.mean() > by_chance else first
