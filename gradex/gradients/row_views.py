"""How estimators see the rows of a store: at which length, and in which basis.

    raw     g
    unit    g / norm(g)
    soft    g / (norm(g) + m),   m the median norm

Rows with large gradients dominate every sum; unit rows all weigh the same, soft rows nearly so,
without lifting those that are close to nothing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from gradex.errors import unknown
from gradex.gradients.shards import LEAST_NORM
from gradex.gradients.store import Block, GradientStore

RowNorm = Literal["raw", "soft", "unit"]


@dataclass(frozen=True)
class RowView:
    """Rows g are seen as weight(norm(g)) g, and times `basis` where there is one."""

    norm: RowNorm = "unit"
    middle: float = 0.0  # the m of soft rows
    basis: Float[np.ndarray, "dim small"] | None = None

    def __call__(self, block: Block) -> Float[np.ndarray, "row small"]:
        norms = block.table["grad_norm"].astype(np.float64)
        rows = block.gradients * row_weights(norms, self.norm, self.middle)[:, None]
        return rows if self.basis is None else rows @ self.basis

    def dim(self, store: GradientStore) -> int:
        return store.dim if self.basis is None else self.basis.shape[1]

    @cached_property
    def key(self) -> str:
        """What tells sums over rows of two views apart."""
        basis = b"" if self.basis is None else np.ascontiguousarray(self.basis).tobytes()
        return f"{self.norm} {self.middle!r} {hashlib.sha256(basis).hexdigest()}"


def row_weights(
    norms: Float[np.ndarray, " row"], kind: RowNorm, middle: float
) -> Float[np.ndarray, " row"]:
    """A row whose norm is next to nothing has no direction to speak of, and no weight."""
    if kind == "raw":
        return np.ones_like(norms)
    length = norms + (middle if kind == "soft" else 0)
    return np.where(norms > LEAST_NORM, 1 / np.maximum(length, LEAST_NORM), 0.0)


def require_row_norm(kind: str) -> RowNorm:
    if kind not in get_args(RowNorm):
        raise unknown("row normalisation", kind, get_args(RowNorm))
    return kind


def source_view(store: GradientStore, sources: Sequence[str], norm: RowNorm) -> RowView:
    """The view of these sources' rows; the median is that of all of them together."""
    if norm != "soft":
        return RowView(norm)
    norms = [store.table("train", name)["grad_norm"] for name in sources]
    return RowView(norm, float(np.median(np.concatenate(norms))))
