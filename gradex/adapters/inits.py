"""Splits of a weight in a part that the adapter begins from and a frozen rest.

    W = residual + (alpha / rank) B A

Of W = U S V^T, a slice of singular components is taken out with B = U sqrt(S / s) and
A = sqrt(S / s) V^T, s = alpha / rank: the largest (PiSSA: Meng et al., 2024), the smallest (MiLoRA:
Wang et al., 2024) or those in the middle. OLoRA (Buyukakyuz, 2024) takes the first columns and rows
of W = Q R. Weights are (out, in); the arithmetic is in float32, or in float64 where W is.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gradex.errors import GradexError

Split = tuple[
    Float[Tensor, "rank in"], Float[Tensor, "out rank"], Float[Tensor, "out in"]
]  # A, B, residual
Splitter = Callable[[Tensor, int, float], Split]


def principal_svd(weight: Float[Tensor, "out in"], rank: int, alpha: float) -> Split:
    """The `rank` largest singular components (PiSSA)."""
    return _svd_slice(weight, rank, alpha, first=0)


def minor_svd(weight: Float[Tensor, "out in"], rank: int, alpha: float) -> Split:
    """The `rank` smallest singular components (MiLoRA)."""
    return _svd_slice(weight, rank, alpha, first=min(weight.shape) - rank)


def middle_svd(weight: Float[Tensor, "out in"], rank: int, alpha: float) -> Split:
    """As many singular components from the middle."""
    return _svd_slice(weight, rank, alpha, first=(min(weight.shape) - rank) // 2)


def first_of_qr(weight: Float[Tensor, "out in"], rank: int, alpha: float) -> Split:
    """The first columns of Q and rows of R (OLoRA), as they are: s Q R is taken out."""
    require_rank(weight, rank)
    precise = _precise(weight)
    q, r = torch.linalg.qr(precise)
    return _split(precise, r[:rank], q[:, :rank], scale=alpha / rank)


def _svd_slice(weight: Tensor, rank: int, alpha: float, *, first: int) -> Split:
    require_rank(weight, rank)
    precise, scale = _precise(weight), alpha / rank
    u, s, vh = torch.linalg.svd(precise, full_matrices=False)
    chosen = slice(first, first + rank)
    root = (s[chosen] / scale).sqrt()
    return _split(precise, root[:, None] * vh[chosen], u[:, chosen] * root, scale=scale)


def _split(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Split:
    a, b = a.contiguous(), b.contiguous()
    return a, b, weight - scale * b @ a


def _precise(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def require_rank(weight: Float[Tensor, "out in"], rank: int) -> None:
    """A slice of too many components would silently hold fewer."""
    if rank > min(weight.shape):
        raise GradexError(
            f"a rank of {rank}, but a weight of {weight.shape[0]} x {weight.shape[1]} has only "
            f"{min(weight.shape)} components; ask for a lower --lora_r"
        )
