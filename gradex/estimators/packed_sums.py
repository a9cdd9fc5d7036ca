"""The sums A, b and n of all sources, packed, within a stated amount of memory.

Up to DOUBLE_BYTES the matrices are kept in double precision, up to MOST_BYTES in single: the sums
of a subset then err by about 1e-7 of themselves, and the solves remain in double. Rows whose
matrices would take more are compressed first, to the dimensions that fit.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gradex.estimators.packed import pack, packed_size
from gradex.gradients.row_views import RowView
from gradex.gradients.statistics import source_sums
from gradex.gradients.store import GradientStore
from gradex.progress import progress, say_once

DOUBLE_BYTES = 2 * 2**30
MOST_BYTES = 4 * 2**30


def compressed_dim(dim: int, sources: int, *, asked: int | None) -> int | None:
    """In how many dimensions the sums are made; None: in those of the store."""
    if asked is not None:
        return asked
    numbers = MOST_BYTES // (4 * sources)
    most = int(((8 * numbers + 1) ** 0.5 - 1) / 2)  # of packed_size(most) <= numbers
    if dim <= most:
        return None
    say_once(
        f"statistics of {sources} sources in {dim} dims would take "
        f"{4 * sources * packed_size(dim) / 2**30:.1f} GiB: rows are compressed to {most} dims, "
        "or to fewer with --compress"
    )
    return most


def packed_sums(
    store: GradientStore, sources: Sequence[str], view: RowView
) -> tuple[
    Float[np.ndarray, "source packed"],
    Float[np.ndarray, "source dim"],
    Float[np.ndarray, " source"],
]:
    """Packed A, b and n of every source."""
    count, dim = len(sources), view.dim(store)
    grams = np.empty((count, packed_size(dim)), _precision(count, dim))
    totals, counts = np.empty((count, dim)), np.empty(count)
    with progress("statistics", count, unit="source") as bar:
        for i, name in enumerate(sources):
            found = source_sums(store, name, view=view)
            grams[i] = pack(found.gram)
            totals[i], counts[i] = found.total, found.count
            bar.update()
    return grams, totals, counts


def _precision(sources: int, dim: int) -> type[np.floating]:
    numbers = sources * packed_size(dim)
    if 8 * numbers <= DOUBLE_BYTES:
        return np.float64
    say_once(
        f"statistics in single precision: {sources} sources of {dim} dims take "
        f"{4 * numbers / 2**30:.1f} GiB, twice that in double"
    )
    return np.float32
