"""Packed symmetric matrices: the numbers of one triangle, half of those of a full matrix.

In the rectangular order that LAPACK factors as fast as full matrices: Gustavson et al.,
"Rectangular Full Packed Format for Cholesky's Algorithm", ACM TOMS 37, 2010 (arXiv 0901.1696).
"""

from functools import cache

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import lapack


def packed_size(dim: int) -> int:
    return dim * (dim + 1) // 2


def pack(gram: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, " packed"]:
    return lapack.dtrttf(gram)[0]


@cache
def diagonal(dim: int) -> Int[np.ndarray, " dim"]:
    """Where a packed matrix keeps its diagonal."""
    return np.flatnonzero(pack(np.eye(dim)))
