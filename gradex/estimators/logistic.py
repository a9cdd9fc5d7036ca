"""The paper's estimate: ridge-logistic regression of "this row is learned" on its gradients.

Fine-tuning on a subset S of n rows is taken to go where the rows' loss is least,
    z = argmin  mean_S softplus(-(m_i + g_i z)) + lam tau / 2 |z|^2,
in the words of `margins`, found exactly by Newton's method. As in `linear`, tau = mean |g|^2 is one
scale for the whole store: a common factor of all gradients changes no estimate. There is no
intercept and no label but "learned"; it is the ridge that keeps z finite.

Method: Li et al., "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", Findings of EMNLP 2024 (arXiv 2409.19458); see `published` for what its code did.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit

from gradex.errors import GradexError
from gradex.estimators.margins import MarginFit, Rows
from gradex.models.losses import Objective

MAX_STEPS = 200  # Newton's; a fit takes about ten
LEAST_DECREASE = 1e-20  # of the objective: where a step promises less, it is the last
ROUNDING = 1e-14  # share of the objective that is lost to rounding
SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo, 1966)


class Logistic(MarginFit):
    """See the module."""

    def __init__(self, *, lam: float = 1e-6, objective: Objective = "margin"):
        super().__init__(objective)
        self.lam = lam

    def displacement_of(
        self, rows: Rows, sources: Int[np.ndarray, " chosen"]
    ) -> Float[np.ndarray, " dim"]:
        return ridge_logistic(rows, lam=self.lam, tau=self.tau_)


def ridge_logistic(rows: Rows, *, lam: float, tau: float = 1.0) -> Float[np.ndarray, " dim"]:
    """argmin over z of the rows' mean loss + lam tau / 2 |z|^2, by Newton's method.

    Solved in the unit in which tau is 1, so that the constants above mean the same for any store.
    """
    unit = np.sqrt(tau)
    rows = Rows(rows.margins, rows.gradients / unit)
    objective = partial(_objective, rows, lam)
    z = np.zeros(rows.gradients.shape[1])
    try:
        for _ in range(MAX_STEPS):
            step, promised = _newton_step(rows, lam, z)
            if promised <= LEAST_DECREASE:
                return (z + step) / unit
            z = z + _sufficient(objective, z, step, promised) * step
    except LinAlgError:
        pass
    raise GradexError(
        f"--lam: found {lam}, too weak a ridge for a logistic fit of {len(rows.margins)} rows in "
        "double precision; raise it"
    )


def _objective(rows: Rows, lam: float, z: Float[np.ndarray, " dim"]) -> float:
    return rows.loss(z) + lam / 2 * float(z @ z)


def _newton_step(
    rows: Rows, lam: float, z: Float[np.ndarray, " dim"]
) -> tuple[Float[np.ndarray, " dim"], float]:
    """The step to the minimum of the quadratic model, and twice the decrease that it promises."""
    count, g = len(rows.margins), rows.gradients
    miss = expit(-(rows.margins + g @ z))
    slope = lam * z - miss @ g / count
    curvature = g.T @ (g * (miss * (1 - miss) / count)[:, None])
    curvature[np.diag_indices_from(curvature)] += lam
    step = -cho_solve(cho_factor(curvature), slope)
    return step, float(-slope @ step)


def _sufficient(
    objective: Callable[[Float[np.ndarray, " dim"]], float],
    z: Float[np.ndarray, " dim"],
    step: Float[np.ndarray, " dim"],
    promised: float,
) -> float:
    """The longest of 1, 1/2, 1/4, ... steps that brings enough of the decrease it promises."""
    start, length = objective(z), 1.0
    start += ROUNDING * (1 + start)
    while objective(z + length * step) > start - SUFFICIENT * length * promised:
        length /= 2
    return length
