"""Sums of the sources' matrices over many subsets, each by the shorter of two ways.

Unrelated subsets are a product of their membership with the matrices. Those that a search asks for
differ in few sources from what most of them share, their core: it is summed once and moves from
block to block, and each subset is the core plus its differences from it.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

BLOCK_SUBSETS = 64  # together: enough for the product to be one of matrices
BLOCK_BYTES = 2**27
CACHE_BYTES = 2**22  # of sums made one by one: they are used before they leave the processor
DIFFERENCE = 10  # what one costs, in sources of the product

Member = Float[np.ndarray, "subset source"]
Matrices = Float[np.ndarray, "source packed"]
Sums = Float[np.ndarray, "_ packed"]


def subset_sums(member: Member, matrices: Matrices) -> Iterator[Sums]:
    """The sums in double precision, some subsets at a time, in order; the caller may overwrite
    them. A membership counts as much as its number says."""
    core, total = np.zeros(len(matrices)), np.zeros(matrices.shape[1])
    for part in _pieces(member, min(BLOCK_SUBSETS, _fitting(BLOCK_BYTES, matrices))):
        shared = (part.mean(0) > 0.5).astype(np.float64)
        moved, apart = shared - core, part - shared
        if DIFFERENCE * (np.count_nonzero(moved) + np.count_nonzero(apart)) < part.size:
            _add(total, moved, matrices)
            core = shared
            for piece in _pieces(apart, _fitting(CACHE_BYTES, matrices)):
                yield _around(total, piece, matrices)
        else:
            yield (part.astype(matrices.dtype) @ matrices).astype(np.float64, copy=False)


def _around(total: Float[np.ndarray, " packed"], apart: Member, matrices: Matrices) -> Sums:
    sums = np.tile(total, (len(apart), 1))
    for own, differences in zip(sums, apart, strict=True):
        _add(own, differences, matrices)
    return sums


def _add(
    total: Float[np.ndarray, " packed"], weights: Float[np.ndarray, " source"], matrices: Matrices
) -> None:
    for source in np.flatnonzero(weights):
        total += float(weights[source]) * matrices[source]  # a plain float keeps the precision


def _pieces(member: Member, size: int) -> Iterator[Member]:
    return (member[start : start + size] for start in range(0, len(member), size))


def _fitting(size: int, matrices: Matrices) -> int:
    """How many sums take so many bytes."""
    return max(1, size // (8 * matrices.shape[1]))
