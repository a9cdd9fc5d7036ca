"""CorDA: a split of a weight by what its layer sees (Yang et al., 2024).

    W F = U S V^T,   F = C + d mean(diag C) I,   s = alpha / rank
    B = U_r sqrt(S_r / s),   A = sqrt(S_r / s) V_r^T F^-1,   residual = W - s B A

C is the covariance of the layer's inputs. The `rank` largest components are what the context uses
(instruction-previewed: the adapter begins from the task), the smallest what it can do without
(knowledge-preserved: the adapter leaves it alone). Since V^T F^-1 = S^-1 U^T W,

    s B A = U_r U_r^T W,

the context chooses nothing but directions of the layer's output. A is computed that way: the
identity then holds however ill-conditioned C is, and nothing is divided by F.
"""

import logging

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gradex.adapters.inits import A_WEIGHT, Split, require_rank
from gradex.errors import GradexError
from gradex.progress import say_once

DAMPING = 0.01  # of the mean of C's diagonal
INVERSE_ERROR = 0.05  # the Frobenius norm of F F^-1 - I that is still an inverse
MOST_DOUBLINGS = 60
ROUNDING = 1e-7  # of a weight in float32: less than that is none of it


def context_svd(
    weight: Float[Tensor, "out in"],
    covariance: Float[Tensor, "in in"],
    rank: int,
    alpha: float,
    *,
    largest: bool,
    where: str = A_WEIGHT,
) -> Split:
    """A, B and the residual, in float32, or in float64 where the weight is."""
    require_rank(weight, rank, where=where)
    w, scale = weight.double(), alpha / rank
    u, s = output_components(w @ damped(covariance).double())
    chosen = slice(0, rank) if largest else slice(len(s) - rank, len(s))
    u, s = u[:, chosen], s[chosen]
    part = u.T @ w
    _warn_of_nothing(part, weight)
    size = (s * scale).sqrt()[:, None]
    a, b = torch.where(size > 0, part / size, 0.0), u * (s / scale).sqrt()
    kept = torch.promote_types(weight.dtype, torch.float32)
    return a.to(kept), b.to(kept), (w - u @ part).to(kept)


def damped(covariance: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """F: so much of the identity added, doubled as often as it takes, that it can be inverted in
    the precision of the covariance, which is float32 as a rule."""
    level = covariance.diagonal().mean()
    if not (torch.isfinite(level) and level > 0):
        raise GradexError(
            f"a covariance whose diagonal is {level.item():g} on average, expected a number above "
            "0: the layer sees nothing but zeros, or no finite numbers, on the calibration rows"
        )
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for doubling in range(MOST_DOUBLINGS):
        found = covariance + 2**doubling * DAMPING * level * eye
        inverse, _ = torch.linalg.inv_ex(found)
        if torch.dist(found @ inverse, eye) < INVERSE_ERROR:
            return found
    raise GradexError("a covariance that no damping makes invertible; is it finite?")


def output_components(
    seen: Float64[Tensor, "out in"],
) -> tuple[Float64[Tensor, "out component"], Float64[Tensor, " component"]]:
    """The left singular vectors of a weight as a context sees it, the largest first.

    In float64: one input that dwarfs the others, and W F spans more than the digits of float32, in
    which the smallest components would be nothing but rounding.
    """
    u, s, _ = torch.linalg.svd(seen, full_matrices=False)
    return u, s


def _warn_of_nothing(part: Float64[Tensor, "rank in"], weight: Float[Tensor, "out in"]) -> None:
    """What begins at zero on both sides never learns."""
    lost = int((part.norm(dim=1) <= ROUNDING * weight.double().norm()).sum())
    if lost:
        say_once(
            f"a weight of {weight.shape[0]} x {weight.shape[1]} has {lost} components of size zero "
            "among those that its adapter begins from; they cannot be trained",
            level=logging.WARNING,
        )
