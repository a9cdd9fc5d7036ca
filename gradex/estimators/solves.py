"""What turns a subset's Gram matrix A and mean gradient b into a displacement z, many at once.

    ridge            z = -(A + lam tau I)^-1 b
    gradient flow    z = -f(A / tau) b / tau,   f(w) = (1 - exp(-t w)) / w

Matrices are packed (see packed), and overwritten. Where a factorisation fails, z is nan.

With the resolvent R = (I + t A / (c tau))^-1, f(A / tau) = t R h(R), and h is smooth and far from
zero on [0, 1], where the eigenvalues of R lie however large t is. A short Chebyshev series of h
gives every component of z to 3e-10 of itself, by one factorisation and a few solves instead of an
eigendecomposition: a rational method with one repeated pole (Moret & Novati, "RD-rational
approximations of the matrix exponential", BIT 44, 2004).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.polynomial import chebyshev
from scipy.linalg import lapack

from gradex.estimators.packed import diagonal

Grams = Float[np.ndarray, "subset packed"]
Vectors = Float[np.ndarray, "subset dim"]
Solve = Callable[[Grams, Vectors, float], Vectors]  # A and b of some subsets, tau -> z

DEGREE = 22  # of the series
POLE = 16.5  # c: where the series of this degree is closest


def ridge(lam: float) -> Solve:
    """The ridge regression's solution, lam in units of tau."""

    def solve(grams: Grams, means: Vectors, tau: float) -> Vectors:
        dim = means.shape[1]
        grams[:, diagonal(dim)] += lam * tau
        return np.stack([_ridge(gram, -mean, dim) for gram, mean in zip(grams, means, strict=True)])

    return solve


def gradient_flow(t: float) -> Solve:
    """The least-squares fit that gradient flow from zero reaches at time t, in units of 1 / tau."""

    def solve(grams: Grams, means: Vectors, tau: float) -> Vectors:
        dim = means.shape[1]
        grams *= t / (POLE * tau)
        grams[:, diagonal(dim)] += 1
        scaled = (-t / tau) * means
        return np.stack(
            [_resolvent_series(gram, mean) for gram, mean in zip(grams, scaled, strict=True)]
        )

    return solve


def _ridge(
    gram: Float[np.ndarray, " packed"], wanted: Float[np.ndarray, " dim"], dim: int
) -> Float[np.ndarray, " dim"]:
    factor, failed = lapack.dpftrf(dim, gram, overwrite_a=1)
    if failed:
        return np.full(dim, np.nan)
    return lapack.dpftrs(dim, factor, wanted[:, None], overwrite_b=1)[0][:, 0]


def _resolvent_series(
    matrix: Float[np.ndarray, " packed"], vector: Float[np.ndarray, " dim"]
) -> Float[np.ndarray, " dim"]:
    """R h(R) v with R the inverse of the matrix, by the recurrence of Chebyshev polynomials."""
    dim = len(vector)
    factor, failed = lapack.dpftrf(dim, matrix, overwrite_a=1)
    if failed:
        return np.full(dim, np.nan)

    def resolved(v: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " dim"]:
        return lapack.dpftrs(dim, factor, v[:, None])[0][:, 0]

    first, second, *rest = _coefficients()
    before = resolved(vector)
    now = 2 * resolved(before) - before
    out = first * before + second * now
    for coefficient in rest:
        before, now = now, 4 * resolved(now) - 2 * now - before
        out += coefficient * now
    return out


@cache
def _coefficients() -> list[float]:
    """Of h = (1 - exp(-x)) / (x r), x = POLE (1 - r) / r, as a series in 2 r - 1."""

    def of(node: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
        r = (1 + node) / 2
        x = POLE * (1 - r) / r
        return -np.expm1(-x) / (x * r)

    return chebyshev.chebinterpolate(of, DEGREE).tolist()
