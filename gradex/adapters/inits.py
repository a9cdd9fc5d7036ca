"""Splits of a weight in a part that the adapter begins from and a frozen rest.

    W = residual + (alpha / rank) B A

Of W = U S V^T, a slice of singular components is taken out with B = U sqrt(S / s) and
A = sqrt(S / s) V^T, s = alpha / rank: the largest (PiSSA: Meng et al., 2024), the smallest (MiLoRA:
Wang et al., 2024) or those in the middle. OLoRA (Buyukakyuz, 2024) takes the first columns and rows
of W = Q R. Weights are (out, in); the arithmetic is in float32, or in float64 where W is.

The signs of singular vectors are free; here the largest entry of every column of U is positive.
"""

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gradex.errors import GradexError

Split = tuple[
    Float[Tensor, "rank in"], Float[Tensor, "out rank"], Float[Tensor, "out in"]
]  # A, B, residual
Svd = tuple[Float[Tensor, "out rank"], Float[Tensor, " rank"], Float[Tensor, "rank in"]]
Splitter = Callable[..., Split]  # (weight, rank, alpha, *, where)
A_WEIGHT = "a weight"
log = logging.getLogger(__name__)


def principal_svd(
    weight: Float[Tensor, "out in"], rank: int, alpha: float, *, where: str = A_WEIGHT
) -> Split:
    """The `rank` largest singular components (PiSSA)."""
    return _svd_slice(weight, rank, alpha, first=0, where=where)


def minor_svd(
    weight: Float[Tensor, "out in"], rank: int, alpha: float, *, where: str = A_WEIGHT
) -> Split:
    """The `rank` smallest singular components (MiLoRA)."""
    return _svd_slice(weight, rank, alpha, first=min(weight.shape) - rank, where=where)


def middle_svd(
    weight: Float[Tensor, "out in"], rank: int, alpha: float, *, where: str = A_WEIGHT
) -> Split:
    """As many singular components from the middle."""
    first = (min(weight.shape) - rank) // 2
    return _svd_slice(weight, rank, alpha, first=first, where=where)


def principal_svd_fast(
    weight: Float[Tensor, "out in"],
    rank: int,
    alpha: float,
    *,
    niter: int,
    generator: torch.Generator,
    where: str = A_WEIGHT,
) -> Split:
    """About the largest components, by `niter` power iterations (PiSSA's section 3); what is taken
    out is a projection of W whether they have converged or not, so that nothing is lost."""
    precise = _sound(weight, rank, where=where)
    found = randomised_svd(precise, rank, niter=niter, generator=generator)
    return _balanced(precise, *found, scale=alpha / rank)


def first_of_qr(
    weight: Float[Tensor, "out in"], rank: int, alpha: float, *, where: str = A_WEIGHT
) -> Split:
    """The first columns of Q and rows of R (OLoRA), as they are: s Q R is taken out."""
    precise = _sound(weight, rank, where=where)
    q, r = torch.linalg.qr(precise)
    return split_off(precise, r[:rank], q[:, :rank], scale=alpha / rank)


def randomised_svd(
    matrix: Float[Tensor, "out in"], rank: int, *, niter: int, generator: torch.Generator
) -> Svd:
    """The `rank` largest singular components, nearly (Halko et al., 2011, algorithms 4.4 and 5.1);
    all that there are, exactly, where these are at most twice as many. The generator is the CPU's,
    so that every device draws the same."""
    width = min(2 * rank, *matrix.shape)
    drawn = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ drawn.to(matrix.device)).Q
    for _ in range(niter):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    u, vh = _signed((basis @ u)[:, :rank], vh[:rank])
    return u, s[:rank], vh


def _svd_slice(weight: Tensor, rank: int, alpha: float, *, first: int, where: str) -> Split:
    precise = _sound(weight, rank, where=where)
    u, s, vh = torch.linalg.svd(precise, full_matrices=False)
    chosen = slice(first, first + rank)
    _warn_of_zeros(s[chosen], largest=s[0], size=max(weight.shape), where=where)
    u, vh = _signed(u[:, chosen], vh[chosen])
    return _balanced(precise, u, s[chosen], vh, scale=alpha / rank)


def _balanced(weight: Tensor, u: Tensor, s: Tensor, vh: Tensor, *, scale: float) -> Split:
    """Half of each singular value to either side, which makes B^T B = A A^T."""
    root = (s / scale).sqrt()
    return split_off(weight, root[:, None] * vh, u * root, scale=scale)


def split_off(
    weight: Float[Tensor, "out in"],
    a: Float[Tensor, "rank in"],
    b: Float[Tensor, "out rank"],
    *,
    scale: float,
) -> Split:
    """The residual of a weight that is in the precision of the arithmetic."""
    a, b = a.contiguous(), b.contiguous()
    return a, b, weight - scale * b @ a


def _signed(u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return u * sign, vh * sign.T


def _warn_of_zeros(chosen: Tensor, *, largest: Tensor, size: int, where: str) -> None:
    """Where a weight has less than full rank, its smallest components are rounding errors."""
    zeros = int((chosen <= size * torch.finfo(chosen.dtype).eps * largest).sum())
    if zeros:
        log.warning(
            "%s: has not the full rank: %d of the %d singular components that its adapter begins "
            "from are zero, and this part of it can hardly learn; --adapter lora has no such part",
            where, zeros, len(chosen),
        )  # fmt: skip


def _sound(weight: Tensor, rank: int, *, where: str) -> Tensor:
    """The weight in the precision of the arithmetic, where it can be split."""
    if not torch.isfinite(weight).all():
        raise GradexError(f"{where}: has entries that are not finite; name a sound base model")
    require_rank(weight, rank, where=where)
    return weight if weight.dtype == torch.float64 else weight.float()


def require_rank(weight: Float[Tensor, "out in"], rank: int, *, where: str = A_WEIGHT) -> None:
    """A slice of too many components would silently hold fewer."""
    if rank > min(weight.shape):
        raise GradexError(
            f"{where}: a rank of {rank}, but its {weight.shape[0]} x {weight.shape[1]} entries "
            f"have only {min(weight.shape)} components; ask for a lower --lora_r"
        )
