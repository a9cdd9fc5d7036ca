"""Kernel ridge regression whose kernel and strength are chosen by leaving one run out.

    f(x) = mean(y) + (k(x, X) - mean_i k(x_i, X)) a,     (K_c + lam I) a = y - mean(y)

with K_c the kernel matrix centred on both sides, so that the intercept is not penalised. By how
much a fit without run i misses it needs no second fit: a_i / M_ii, M the inverse of K_c + lam I on
the vectors that sum to zero (Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006,
equation 5.12, here with a free intercept).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

Kernel = Callable[[Float[np.ndarray, "a x"], Float[np.ndarray, "b x"]], Float[np.ndarray, "a b"]]
# Kernels are at most about 1. A smaller first one fits the noise of as many runs as there are
# sources; the last one leaves little but the mean.
STRENGTHS = tuple(10.0**power for power in range(-3, 3))


def linear(a: Float[np.ndarray, "a x"], b: Float[np.ndarray, "b x"]) -> Float[np.ndarray, "a b"]:
    """The kernel of ridge regression: the share of the coordinates that two 0/1 rows both have."""
    return a @ b.T / a.shape[1]


def rbf(width: float) -> Kernel:
    """exp(-d / width), d the share of the coordinates in which two 0/1 rows differ."""
    return lambda a, b: np.exp(-cdist(a, b, "sqeuclidean") / (width * a.shape[1]))


@dataclass(frozen=True)
class KernelRidge:
    """A fit of several targets, each with its own kernel and strength."""

    rows: Float[np.ndarray, "run x"]
    kernels: list[Kernel]
    strengths: list[float]
    mean: Float[np.ndarray, " target"]
    weights: Float[np.ndarray, "run target"]

    def predict(self, rows: Float[np.ndarray, "row x"]) -> Float[np.ndarray, "row target"]:
        value = np.tile(self.mean, (len(rows), 1))
        for column, kernel in enumerate(self.kernels):
            centre = kernel(self.rows, self.rows).mean(0)
            value[:, column] += (kernel(rows, self.rows) - centre) @ self.weights[:, column]
        return value


def fit(
    rows: Float[np.ndarray, "run x"],
    values: Float[np.ndarray, "run target"],
    *,
    kernels: Sequence[Kernel],
    strengths: Sequence[float] = STRENGTHS,
) -> KernelRidge:
    """For every target the kernel and strength with the least squared error on left-out runs."""
    tried = [(kernel, strength) for kernel in kernels for strength in strengths]
    solved = [solve(kernel(rows, rows), values, strengths) for kernel in kernels]
    weights, missed = (np.concatenate(side) for side in zip(*solved, strict=True))
    best = (missed**2).sum(1).argmin(0)
    return KernelRidge(
        rows,
        kernels=[tried[i][0] for i in best],
        strengths=[tried[i][1] for i in best],
        mean=values.mean(0),
        weights=np.take_along_axis(weights, best[None, None], 0)[0],
    )


def solve(
    gram: Float[np.ndarray, "run run"],
    values: Float[np.ndarray, "run target"],
    strengths: Sequence[float],
) -> tuple[Float[np.ndarray, "strength run target"], Float[np.ndarray, "strength run target"]]:
    """For every strength the weights, and by how much fits without a run miss its values."""
    centred = gram - gram.mean(0) - gram.mean(1, keepdims=True) + gram.mean()
    # The constant vector is given the largest eigenvalue and then left out: what remains sums to
    # zero, and no digits cancel in M where a fit all but interpolates.
    lifted = centred + (np.trace(centred) + 1) / len(gram)
    eigenvalues, vectors = np.linalg.eigh(lifted)
    eigenvalues, vectors = eigenvalues[:-1].clip(0), vectors[:, :-1]
    inverse = 1 / (eigenvalues + np.array(strengths)[:, None])
    weights = (vectors * inverse[:, None]) @ (vectors.T @ values)
    return weights, weights / (inverse @ (vectors**2).T)[..., None]


def predict_left_out(
    rows: Float[np.ndarray, "run x"],
    values: Float[np.ndarray, "run target"],
    *,
    kernels: Sequence[Kernel],
) -> Float[np.ndarray, "run target"]:
    """Every run as a fit to the others predicts it, which choose kernel and strength without it."""
    said = np.empty_like(values)
    for i in range(len(rows)):
        others = np.arange(len(rows)) != i
        said[i] = fit(rows[others], values[others], kernels=kernels).predict(rows[[i]])[0]
    return said
