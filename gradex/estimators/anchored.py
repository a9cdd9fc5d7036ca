"""From estimates to outcomes: a Gaussian process over a handful of true fine-tunes, the anchors.

For one target and subset S with the standardised estimate f(S), the outcome y (a loss or a metric
on a scale without bounds, in units of its spread) is

    y(S) = SLOPE f(S) + g(S) + noise,    g ~ GP(0, k)
    k(S, S') = WIDE + a f f' + b exp(-(f - f')^2 / 2) + c exp(-d(S, S')^2 / 2)

That is: a straight line that the estimate is believed to lie near, a smooth bend of it, and a
residual that subsets share which hold the same sources. In d a source counts as much as the
estimates say that it matters for the target, so that an anchor teaches about the sources that
decide. The four variances are common to all targets: the few anchors of each would not fix them.
How much of them a target needs has the usual conjugate prior, so that its predictions follow
Student's t.

Method: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), equations 2.25,
2.26 and 5.12, section 9.9 for the t; the kernel on membership as in "Efficient Estimation of Kernel
Surrogate Models for Task Attribution" (arXiv 2602.03783).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.stats import norm
from scipy.stats import t as student

SLOPE = 0.8  # of the outcome on the estimate, both in units of their spread
WIDE = 25.0  # variance of the intercept: nothing is known of it
# Medians of the variances a, b, c and of the noise, and their spread in e-folds.
PRIOR = np.log([0.5, 0.3, 0.1, 0.05])
SPREAD_OF_PRIOR = 1.0
# The spread of an outcome, taken for as much as so many anchors say.
USUAL_SPREAD, ITS_WEIGHT = 1.0, 2.0
TOTAL_RELEVANCE = 6.5  # so that two random halves of the sources lie 1.8 lengths apart
EVEN_SHARE = 0.1  # of the relevance, spread evenly over the sources
DEGREES = 4.0  # how many anchors the common variances are worth for one target's own share of them
LEVEL = 0.9  # of the prediction intervals

VARIANCES = ("line", "bend", "membership", "noise")  # a, b, c
Variances = Float[np.ndarray, "4"]


@dataclass(frozen=True)
class Points:
    """Subsets as one target sees them: standardised estimates and weighted memberships."""

    estimate: Float[np.ndarray, " subset"]
    member: Float[np.ndarray, "subset source"]

    def __getitem__(self, chosen: Sequence[int] | np.ndarray) -> "Points":
        return Points(self.estimate[chosen], self.member[chosen])


def relevances(effects: Float[np.ndarray, " source"]) -> Float[np.ndarray, " source"]:
    """Weights of the sources in d, from their estimated effects on one target."""
    square = effects**2
    if not square.any():
        square = np.ones_like(square)
    share = (1 - EVEN_SHARE) * square / square.sum() + EVEN_SHARE / len(square)
    return np.sqrt(TOTAL_RELEVANCE * share)


def kernel(
    first: Points, second: Points, variances: Variances
) -> Float[np.ndarray, "first second"]:
    line, bend, member, _ = variances
    apart = first.estimate[:, None] - second.estimate
    return (
        WIDE
        + line * np.outer(first.estimate, second.estimate)
        + bend * np.exp(-(apart**2) / 2)
        + member * np.exp(-_squared_distances(first.member, second.member) / 2)
    )


def _squared_distances(
    first: Float[np.ndarray, "first source"], second: Float[np.ndarray, "second source"]
) -> Float[np.ndarray, "first second"]:
    lengths = (first**2).sum(1)[:, None] + (second**2).sum(1)
    return np.maximum(lengths - 2 * first @ second.T, 0)


def _with_noise(points: Points, variances: Variances) -> Float[np.ndarray, "subset subset"]:
    return kernel(points, points, variances) + variances[3] * np.eye(len(points.estimate))


@dataclass(frozen=True)
class Anchored:
    """One target's process, given its anchors; their outcomes in units of their spread."""

    anchors: Points
    outcomes: Float[np.ndarray, " anchor"]
    middle: float
    spread: float
    variances: Variances
    inverse: Float[np.ndarray, "anchor anchor"]
    weights: Float[np.ndarray, " anchor"]

    def predict(
        self, points: Points
    ) -> tuple[Float[np.ndarray, " subset"], Float[np.ndarray, " subset"]]:
        """Means of the outcomes of single fine-tunes, and how far their intervals reach from it."""
        across = kernel(points, self.anchors, self.variances)
        line, bend, member, noise = self.variances
        own = WIDE + line * points.estimate**2 + bend + member + noise
        variance = own - np.einsum("sa,ab,sb->s", across, self.inverse, across)
        mean = SLOPE * points.estimate + across @ self.weights
        reach = self._quantile() * np.sqrt(np.maximum(variance, noise))
        return self.middle + self.spread * mean, self.spread * reach

    def difference(self, first: Points, second: Points) -> tuple[float, float]:
        """Mean of what one subset's outcome lies above another's, without the noise of single
        fine-tunes, and how far its interval reaches from it."""
        line, bend, member, _ = self.variances
        apart = float(first.estimate[0] - second.estimate[0])
        squares = float(((first.member - second.member) ** 2).sum())
        # Of the prior the intercept is common to both; the rest vanishes where they are the same.
        own = line * apart**2
        own -= 2 * (bend * np.expm1(-(apart**2) / 2) + member * np.expm1(-squares / 2))
        one, other = (kernel(at, self.anchors, self.variances)[0] for at in (first, second))
        across = one - other
        variance = max(own - across @ self.inverse @ across, 0.0)
        mean = SLOPE * apart + across @ self.weights
        return self.spread * mean, self.spread * self._quantile() * float(np.sqrt(variance))

    def _quantile(self) -> float:
        """Half the width of the interval of a prediction with variance 1. The anchors' squares tell
        what share of the common variances this target needs; the intercept takes one of them."""
        degrees = DEGREES + len(self.outcomes) - 1
        squares = (self.outcomes - SLOPE * self.anchors.estimate) @ self.weights
        return student.ppf((1 + LEVEL) / 2, degrees) * np.sqrt((DEGREES + squares) / degrees)

    def left_out(self) -> tuple[Float[np.ndarray, " anchor"], Float[np.ndarray, " anchor"]]:
        """How far each anchor lies from what the others say, and the standard deviation of that,
        in units of the outcome's spread."""
        variance = 1 / np.diag(self.inverse)
        return self.weights * variance, np.sqrt(variance)


def anchor(
    points: Points, outcomes: Float[np.ndarray, " anchor"], variances: Variances
) -> Anchored:
    """The process of one target, given what its anchors came to."""
    middle, spread = _standard(outcomes)
    inverse = np.linalg.inv(_with_noise(points, variances))
    standard = (outcomes - middle) / spread
    weights = inverse @ (standard - SLOPE * points.estimate)
    return Anchored(points, standard, middle, spread, variances, inverse, weights)


def _standard(outcomes: Float[np.ndarray, " anchor"]) -> tuple[float, float]:
    middle = float(outcomes.mean())
    squares = ((outcomes - middle) ** 2).sum() + ITS_WEIGHT * USUAL_SPREAD**2
    return middle, float(np.sqrt(squares / (len(outcomes) - 1 + ITS_WEIGHT)))


def fit_variances(
    targets: Sequence[tuple[Points, Float[np.ndarray, " anchor"]]],
) -> Variances:
    """The variances that predict each anchor best from the others, over all targets."""

    def cost(logs: Float[np.ndarray, "4"]) -> float:
        doubt = ((logs - PRIOR) ** 2).sum() / (2 * SPREAD_OF_PRIOR**2)
        fitted = (anchor(points, outcomes, np.exp(logs)) for points, outcomes in targets)
        return doubt - sum(float(left_out_densities(one).sum()) for one in fitted)

    return np.exp(minimize(cost, PRIOR, method="L-BFGS-B", options={"maxiter": 60}).x)


def left_out_densities(fitted: Anchored) -> Float[np.ndarray, " anchor"]:
    """Log density of every anchor given the others, in units of the outcome's spread."""
    error, deviation = fitted.left_out()
    return norm.logpdf(error, scale=deviation)


def spread_out(pools: Sequence[Points], count: int) -> list[int]:
    """Which of a pool's subsets to fine-tune on: one after the other, the one that all targets
    together know least about (greedy D-optimal design). `pools` is the pool as each target sees it.
    """
    variances = np.exp(PRIOR)
    left = np.stack([_with_noise(points, variances) for points in pools])
    chosen: list[int] = []
    for _ in range(min(count, left.shape[1])):
        unknown = np.log(np.diagonal(left, axis1=1, axis2=2)).sum(0)
        unknown[chosen] = -np.inf
        best = int(unknown.argmax())
        chosen.append(best)
        column = left[:, :, best] - variances[3] * np.eye(left.shape[1])[best]
        left = left - column[:, :, None] * column[:, None, :] / left[:, best, best][:, None, None]
    return chosen
