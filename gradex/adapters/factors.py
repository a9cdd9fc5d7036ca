"""Low-rank updates and their best approximations of lower rank.

    update = scale B A,      B = Qb Rb,  A^T = Qa Ra,  Rb Ra^T = U S V^T

so that (Qb U) S (Qa V)^T is the singular value decomposition of B A, at the cost of one of the size
of the rank. Cutting it after c components leaves an error whose Frobenius norm is that of the
discarded singular values (Eckart and Young, 1936), and nothing of that rank is nearer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NUMERICALLY_ZERO = 32 * torch.finfo(torch.float32).eps  # of the largest singular value


@dataclass(frozen=True)
class Factors:
    """The update scale * b @ a of a layer's weight, which is (out, in)."""

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.a)

    def update(self) -> Float[Tensor, "out in"]:
        return self.scale * self.b @ self.a


@dataclass(frozen=True)
class Cut:
    """Factors of lower rank, with the squared Frobenius norms of what was cut off and of all."""

    factors: Factors
    lost: float
    total: float

    @property
    def error(self) -> float:
        """Relative, in the Frobenius norm."""
        return (self.lost / self.total) ** 0.5 if self.total else 0.0


@dataclass(frozen=True)
class Target:
    """How low: at most `rank` components, or as few as hold `energy` of the squared norm; with
    neither, all that are not numerically zero."""

    rank: int | None = None
    energy: float | None = None

    @property
    def is_exact(self) -> bool:
        return self.rank is None and self.energy is None

    def count(self, singular: Float[Tensor, " component"]) -> int:
        """How many of the singular values, which fall, are to be kept."""
        there = int((singular > NUMERICALLY_ZERO * singular[0]).sum())
        if self.rank is not None:
            return min(self.rank, there)
        if self.energy is not None:
            held = singular.square().cumsum(0)
            return min(int((held < self.energy * held[-1]).sum()) + 1, there)
        return there


def product_svd(
    a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"]
) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of B A, by the decomposition above, in the precision of the two."""
    qb, rb = torch.linalg.qr(b)
    qa, ra = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    return qb @ u, s, vh @ qa.T


def cut_product(factors: Factors, target: Target) -> Cut:
    """In float64."""
    return _cut(*product_svd(factors.a.double(), factors.scale * factors.b.double()), target)


def cut_matrix(update: Float[Tensor, "out in"], target: Target) -> Cut:
    """Of an update that is not known as a product."""
    return _cut(*torch.linalg.svd(update.float(), full_matrices=False), target)


def _cut(u: Tensor, s: Tensor, vh: Tensor, target: Target) -> Cut:
    kept = target.count(s)
    root = s[:kept].sqrt()
    a, b = root[:, None] * vh[:kept], u[:, :kept] * root
    factors = Factors(a.float().contiguous(), b.float().contiguous())
    return Cut(factors, float(s[kept:].square().sum()), float(s.square().sum()))
