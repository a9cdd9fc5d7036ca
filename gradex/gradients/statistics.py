"""Sums over the rows of a source, all that linear-algebra estimators read: built once, then kept.

    A = sum g g^T,   b = sum g,   n      over the source's good rows, seen as a RowView says

They lie in `stats/<key>.npz` of the store. The key is a hash of the view and of the shards they
were made of, so that a source that has grown is summed anew and no other is. They are derived: a
missing or damaged file is made again, and a store that cannot be written to is only slower.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from gradex.errors import GradexError
from gradex.gradients.row_views import RowView
from gradex.gradients.store import GradientStore
from gradex.models.losses import Objective
from gradex.progress import say_once
from gradex.records import replacing

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


def source_sums(
    store: GradientStore, name: str, *, objective: Objective = "loss", view: RowView = UNIT
) -> SourceSums:
    """The sums of a source, from the store's cache or in one pass over its shards."""
    file = store.path / "stats" / f"{_key(store, name, objective, view)}.npz"
    found = _read(file, view.dim(store))
    if found is None:
        found = _sum_up(store, name, objective, view)
        _write(file, found)
    return found


def _key(store: GradientStore, name: str, objective: Objective, view: RowView) -> str:
    digests = [receipt["files"] for receipt in store.receipts("train", name)]
    what = repr((VERSION, objective, view.key, digests))
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def _sum_up(store: GradientStore, name: str, objective: Objective, view: RowView) -> SourceSums:
    # Kept under the hash of the right gradients, wrong sums would outlive the shard's repair.
    store.require_undamaged("train", name)
    dim = view.dim(store)
    total, count = np.zeros(dim), 0
    rows: list[np.ndarray] = []
    gram: np.ndarray | None = None
    for block in store.blocks("train", name, objective=objective):
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
    if gram is None:
        return SourceSums(total, count, np.concatenate(rows), is_rows=True)
    return SourceSums(total, count, np.asarray(gram), is_rows=False)


def _read(file: Path, dim: int) -> SourceSums | None:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            found = SourceSums(
                kept["total"], int(kept["count"]), kept["matrix"], bool(kept["is_rows"])
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # zip and array readers raise whatever they stumble over
        say_once(f"{file}: damaged ({error}), made again", level=logging.WARNING)
        return None
    whole = found.matrix.shape == (found.count if found.is_rows else dim, dim)
    return found if whole and found.total.shape == (dim,) else None


def _write(file: Path, sums: SourceSums) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as stream:
            np.savez(
                stream,
                total=sums.total,
                count=sums.count,
                matrix=sums.matrix,
                is_rows=sums.is_rows,
            )
    except (OSError, GradexError) as error:
        say_once(f"statistics are not kept: {error}", level=logging.WARNING)
