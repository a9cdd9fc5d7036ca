"""Weights for sources, or for targets, from the inner products of their mean gradients alone.

With the mean gradients of m sources as the rows of G, that of the target g, and weights a on the
simplex (a_i >= 0, sum 1), training on the mixture follows -d, d = G^T a. From gram = G G^T and
b = G g: a unit step lowers source i's loss by (gram a)_i = g_i . d and the target's by a . b, both
to first order.

- `min_norm`: min |d|. It is zero where no step lowers all m losses (Pareto-stationary); else -d
  lowers each of them, by |d|^2 at least. MGDA: Desideri, Comptes Rendus 350 (2012); Sener and
  Koltun, NeurIPS 2018 (arXiv 1810.04650), equation 3. It is a direction for several *targets*, all
  of which are wanted. As a mixture of sources it serves those that nobody wants, the noisy ones
  above all: between sources it only tells how far they are in conflict.
- `balance_weights`, `descent_weights`: the two linear programs of exact Pareto optimal search
  (Mahapatra and Rajan, ICML 2020), where the target's gradient takes the place of the preference
  as in ParetoDA (Lv et al., NeurIPS 2021). They are made to be solved anew as training goes on:
  solved once, they are at a vertex, which mostly is a single source.
- `match_weights`: min |d - g|, the mixture that stands in for the target's own rows.
- `cosine_weights`: the positive part of cos(g_i, g).
"""

import logging

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog, nnls

from gradex.errors import GradexError
from gradex.progress import say_once

ROUNDING = np.finfo(float).eps
Gram = Float[np.ndarray, "source source"]
Products = Float[np.ndarray, " source"]
Weights = Float[np.ndarray, " source"]


def min_norm(gram: Gram) -> Weights:
    """The weights of the shortest mixture, exactly."""
    _require_gram(gram)
    x = _coordinates(gram)
    return _nearest(x, np.zeros(len(x)))


def match_weights(gram: Gram, b: Products) -> Weights:
    """The weights of the mixture nearest to g, exactly: min a . gram a - 2 a . b, whatever |g|.

    Only what of g lies in the span of G bears on them; in the coordinates x_i of the gram's
    eigenvectors it is the point p with x_i . p = b_i.
    """
    _require_target(gram, b)
    x = _coordinates(gram)
    return _nearest(x, (x @ b) / (x**2).sum(1))


def balance_weights(gram: Gram, b: Products) -> Weights:
    """max a . b such that (gram a)_j >= balance_bounds(b)_j."""
    _require_target(gram, b)
    found = _linear_program(b, gram, balance_bounds(b))
    # The shortest mixture is within all bounds, where the gram is one of inner products.
    return _or_uniform(found, len(b), "balance: the bounds on the sources' losses")


def balance_bounds(b: Products) -> Products:
    """How far each source's loss must fall at least; -inf: it may rise as it likes.

    Sources that agree with the target (b > 0) are free, but for the one that agrees most, whose
    loss must not rise. That of the others may, by b: as far as a step for the target raises it.
    Where none agrees, no source's loss may rise.
    """
    if b.max() <= 0:
        return np.zeros_like(b)
    return np.where(b == b.max(), 0.0, np.where(b > 0, -np.inf, b))


def descent_weights(gram: Gram, b: Products) -> Weights:
    """max a . gram 1 such that gram a >= 0 and a . b >= min(max b, 0).

    It lowers the sum of the sources' losses; the target's only must not rise. Where no mixture does
    that, all weigh the same, and a line in the log says so.
    """
    _require_target(gram, b)
    rows, bounds = np.vstack([gram, b]), np.append(np.zeros(len(b)), min(b.max(), 0.0))
    found = _linear_program(gram.sum(1), rows, bounds)
    return _or_uniform(found, len(b), "descent: that no loss rises, the target's included,")


def cosine_weights(gram: Gram, b: Products) -> Weights:
    """The positive part of each source's cosine with the target, as shares. Where none is positive,
    all weigh the same, and a line in the log says so."""
    _require_target(gram, b)
    positive = np.maximum(b / np.sqrt(np.diag(gram)), 0)
    total = positive.sum()
    return _or_uniform(
        positive / total if total else None, len(b), "cosine: that a source agrees with the target"
    )


def unit_rows(means: Float[np.ndarray, "*more dim"]) -> Float[np.ndarray, "*more dim"]:
    """Mean gradients at length one. Linear programs are sensitive to scale: of two sources that
    point the same way they take the one with the longer gradient."""
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise GradexError("a mean gradient is zero or not finite, and has no direction")
    return means / lengths


def _coordinates(gram: Gram) -> Float[np.ndarray, "rank source"]:
    """Vectors with the inner products of `gram`, a column a source: its square root."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(gram) * ROUNDING * values[-1]
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def _nearest(
    columns: Float[np.ndarray, "rank source"], point: Float[np.ndarray, " rank"]
) -> Weights:
    """The point of the columns' convex hull that is nearest to `point`.

    min over u >= 0 of |D u|^2 + (sum u - 1)^2, with D the columns seen from the point: for a sum s
    the best u is s a, a the weights that are sought, so that u / sum(u) is exact.
    """
    apart = columns - point[:, None]
    length = np.sqrt((apart**2).sum(0).max(initial=0.0))
    if length == 0:
        return np.full(columns.shape[1], 1 / columns.shape[1])
    system = np.vstack([apart / length, np.ones(columns.shape[1])])
    wanted = np.append(np.zeros(len(apart)), 1.0)
    try:
        u, _ = nnls(system, wanted, maxiter=100 * columns.shape[1])
    except RuntimeError:
        raise GradexError(
            f"the weights of {columns.shape[1]} sources were not found; leave out sources whose "
            "gradients are all but the same"
        ) from None
    return u / u.sum()


def _linear_program(
    gain: Products, rows: Float[np.ndarray, "bound source"], bounds: Float[np.ndarray, " bound"]
) -> Weights | None:
    """max gain . a on the simplex such that rows a >= bounds; None where nothing is within them.

    Each row and its bound are scaled to about 1: the solver takes numbers below 1e-9 for zero, and
    the squares of gradients differ by more than that as training goes on.
    """
    held = np.isfinite(bounds)
    scales = np.abs(rows[held]).max(1)
    found = linprog(
        -gain / (np.abs(gain).max() or 1.0),
        A_ub=-rows[held] / scales[:, None],
        b_ub=-bounds[held] / scales,
        A_eq=np.ones((1, len(gain))),
        b_eq=[1.0],
        method="highs",
    )
    if found.x is None:
        return None
    weights = np.maximum(found.x, 0)
    return weights / weights.sum()


def _or_uniform(found: Weights | None, count: int, wish: str) -> Weights:
    if found is not None:
        return found
    # Said once: while training, weights are solved for hundreds of times.
    say_once(f"{wish} cannot be had with any mixture; all weigh the same", level=logging.WARNING)
    return np.full(count, 1 / count)


def _require_gram(gram: Gram) -> None:
    if not len(gram) or not np.isfinite(gram).all():
        raise GradexError("the sources' inner products are not finite, or there are none")
    squares = np.diag(gram)
    if squares.min() <= 0:
        raise GradexError(
            f"the mean gradient of source {int(squares.argmin())} is zero and has no direction; "
            "leave it out"
        )
    if not np.allclose(gram, gram.T, rtol=0, atol=1e-6 * squares.max()):
        raise GradexError("the sources' inner products are not symmetric; expected G G^T")


def _require_target(gram: Gram, b: Products) -> None:
    _require_gram(gram)
    if not np.isfinite(b).all():
        raise GradexError("the sources' inner products with the target are not finite")
    if not b.any():
        raise GradexError(
            "the target's mean gradient is zero, or at right angles to those of all sources, which "
            "tells nothing of their weights"
        )
