"""How estimates compare with true fine-tunes: numbers of two equally long lists of losses.

What is not defined is nan, without a warning: too few runs, a side that is constant where ranks or
variance are asked for, a value without a logarithm, a missing bound of an interval.
"""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

BOOTSTRAPS = 1000
LEVEL = 0.95
Values = Float[np.ndarray, " run"]


def spearman_interval(estimate: Values, truth: Values, *, seed: int = 0) -> tuple[float, float]:
    """A 95% percentile bootstrap interval of the rank correlation (Efron, 1979).

    Runs are drawn with replacement, 1,000 times; draws without a rank correlation do not count.
    """
    if len(truth) < 3 or np.isnan([estimate, truth]).any():
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(truth), size=(BOOTSTRAPS, len(truth)))
    a, b = (_centred(rankdata(side[drawn], axis=1)) for side in (estimate, truth))
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    defined = spread > 0
    if not defined.any():
        return float("nan"), float("nan")
    found = (a * b).sum(1)[defined] / spread[defined]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _centred(values: Float[np.ndarray, "draw run"]) -> Float[np.ndarray, "draw run"]:
    return values - values.mean(1, keepdims=True)


def log_r2(estimate: Values, truth: Values) -> float:
    """R^2 of log loss: the share of its variance between runs that the estimates explain."""
    if len(truth) < 2 or min(estimate.min(), truth.min()) <= 0 or truth.min() == truth.max():
        return float("nan")
    true = np.log(truth)
    missed = ((np.log(estimate) - true) ** 2).sum()
    return float(1 - missed / ((true - true.mean()) ** 2).sum())


def squared_relative_error(estimate: Values, truth: Values) -> float:
    """Sum of (estimate - truth)^2 over the sum of truth^2, as in Li et al., 2024 (arXiv
    2409.19458)."""
    size = (truth**2).sum()
    return float(((estimate - truth) ** 2).sum() / size) if size > 0 else float("nan")


def coverage(low: Values, high: Values, truth: Values) -> float:
    """The share of true losses that lie within their intervals."""
    if np.isnan([low, high]).any():
        return float("nan")
    return float(((low <= truth) & (truth <= high)).mean())


def regret(estimate: Values, truth: Values) -> float:
    """How much more the run with the lowest estimate loses than the best one; of several with that
    estimate, the mean. A constant estimate has the regret of a choice at random."""
    if np.isnan(estimate).any():
        return float("nan")
    return float(truth[estimate == estimate.min()].mean() - truth.min())


def mean_of_others(truth: Float[np.ndarray, "run target"]) -> Float[np.ndarray, "run target"]:
    """For each run the mean of all other runs: what one would say without any estimate.

    It ranks runs backwards by construction, so that its rank correlation means nothing.
    """
    if len(truth) < 2:
        return np.full_like(truth, np.nan)
    return (truth.sum(0) - truth) / (len(truth) - 1)
