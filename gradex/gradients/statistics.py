"""Sums over the rows of a source, all that linear-algebra estimators read: built once, then kept.

    A = sum g g^T,   b = sum g,   n      over the source's good rows, seen as a RowView says

They are kept under a hash of the view and of the shards they were made of, so that a source that
has grown is summed anew and no other is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradex.errors import GradexError
from gradex.gradients.derived import Arrays, derived, source_digests
from gradex.gradients.row_views import RowView
from gradex.gradients.store import GradientStore

VERSION = "view-1"
UNIT = RowView("unit")


@dataclass(frozen=True)
class SourceSums:
    """The sums of one source. With fewer rows than dimensions the rows are smaller than A."""

    total: Float[np.ndarray, " dim"]
    count: int
    matrix: Float[np.ndarray, "_ dim"]
    is_rows: bool

    @property
    def gram(self) -> Float[np.ndarray, "dim dim"]:
        return self.matrix.T @ self.matrix if self.is_rows else self.matrix


def source_sums(store: GradientStore, name: str, *, view: RowView = UNIT) -> SourceSums:
    """The sums of a source, from the store's cache or in one pass over its shards."""
    kept = derived(
        store,
        (VERSION, view.key, source_digests(store, name)),
        lambda: _sum_up(store, name, view),
        is_whole=lambda arrays: _is_whole(arrays, view.dim(store)),
    )
    return SourceSums(kept["total"], int(kept["count"]), kept["matrix"], bool(kept["is_rows"]))


def _sum_up(store: GradientStore, name: str, view: RowView) -> Arrays:
    # Kept under the hash of the right gradients, wrong sums would outlive the shard's repair.
    store.require_undamaged("train", name)
    dim = view.dim(store)
    total, count = np.zeros(dim), 0
    rows: list[np.ndarray] = []
    gram: np.ndarray | None = None
    for block in store.blocks("train", name):
        seen = view(block)
        total += seen.sum(0)
        count += len(seen)
        rows.append(seen)
        if gram is not None or count >= dim:
            added = sum(part.T @ part for part in rows)
            gram = added if gram is None else gram + added
            rows.clear()
    if count == 0:
        raise GradexError(f"{store.path}: source '{name}' has no good row; select without it")
    matrix = np.concatenate(rows) if gram is None else np.asarray(gram)
    return {
        "total": total,
        "count": np.array(count),
        "matrix": matrix,
        "is_rows": np.array(gram is None),
    }


def _is_whole(arrays: Arrays, dim: int) -> bool:
    if set(arrays) != {"total", "count", "matrix", "is_rows"}:
        return False
    rows = int(arrays["count"]) if arrays["is_rows"] else dim
    return arrays["matrix"].shape == (rows, dim) and arrays["total"].shape == (dim,)
