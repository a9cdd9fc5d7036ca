"""Weights of an ensemble's members: the mixture of their probabilities with the least loss.

    F(w) = -sum_t c_t log sum_i w_i p_i(t),  w >= 0,  sum_i w_i = 1

over label tokens t, each of importance c_t (they sum to 1). F is convex. Newton steps on the
simplex, each a least-squares problem over w >= 0, as in Kim, Carbonetto, Stephens and Anitescu, "A
fast algorithm for maximum likelihood estimation of mixture proportions using sequential quadratic
programming" (2020): a few steps suffice where EM takes thousands, and members that do not help get
a weight of exactly 0. At the optimum no g_i = sum_t c_t p_i(t) / p(t) is above 1, and everywhere
F - min F <= max_i g_i - 1: this tells when to stop.
"""

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

TOLERANCE = 1e-8  # in nats
MOST_STEPS = 100
DAMPING = 1e-10  # of members that say the same

LogProbs = Float[np.ndarray, "member token"]
Importance = Float[np.ndarray, " token"]
Weights = Float[np.ndarray, " member"]


def mixture_loss(log_probs: LogProbs, importance: Importance, weights: Weights) -> float:
    """F: the loss of the mixture on tokens of which each member's log-probability is given."""
    best = log_probs.max(0)
    with np.errstate(divide="ignore"):
        mixed = np.log(weights @ np.exp(log_probs - best)) + best
    return float(-(importance @ mixed))


def best_weights(log_probs: LogProbs, importance: Importance) -> Weights:
    """The weights of least loss, to TOLERANCE."""
    # What is common to all members at a token moves no weight.
    probs = np.exp(log_probs.astype(np.float64) - log_probs.max(0))
    weights = np.full(len(probs), 1 / len(probs))
    for _ in range(MOST_STEPS):
        ratios = probs / (weights @ probs)
        gains = ratios @ importance
        if gains.max() <= 1 + TOLERANCE:
            break
        step = _newton_point(ratios, importance, gains) - weights
        weights = _line_search(probs, importance, weights, step, slope=float((1 - gains) @ step))
    return weights


def _newton_point(
    ratios: Float[np.ndarray, "member token"], importance: Importance, gains: Weights
) -> Weights:
    """The least point over w >= 0 of the quadratic that touches F(w) + sum w: with this sum for a
    Lagrangian no constraint is needed, since the best w sums to 1."""
    hessian = (ratios * importance) @ ratios.T
    hessian[np.diag_indices_from(hessian)] += DAMPING * np.trace(hessian)
    factor = np.linalg.cholesky(hessian)
    # The gradient is 1 - gains, and the hessian times the weights gains again.
    point, _ = nnls(factor.T, solve_triangular(factor, 2 * gains - 1, lower=True))
    return point


def _line_search(
    probs: Float[np.ndarray, "member token"],
    importance: Importance,
    weights: Weights,
    step: Weights,
    *,
    slope: float,
) -> Weights:
    """The longest of the halved steps that lowers F + sum w as its slope promises."""

    def value(point: Weights) -> float:
        with np.errstate(divide="ignore"):
            return float(point.sum() - importance @ np.log(point @ probs))

    length, before = 1.0, value(weights)
    while value(weights + length * step) > before + 1e-4 * length * slope:
        length /= 2
    moved = weights + length * step
    return moved / moved.sum()
