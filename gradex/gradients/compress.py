"""Fewer dimensions for a store that has more than the statistics can hold: a randomised SVD.

Sums over rows take sources x dim^2 numbers. Of W, the (weighted) source rows under each other, the
leading right singular vectors are the basis of the given size that keeps most of the rows' squared
norm. The range finder draws random combinations of the rows and sharpens them by products with
W^T W; each is one pass over the store, a shard at a time, so that W is never in memory:

    Y = W^T W Q,  Q = orth(Y),  again;    then  Q^T W^T W Q = V s^2 V^T,  basis = Q V

With at least as many dimensions as the rows have rank, nothing is lost.

Method: Halko, Martinsson & Tropp, "Finding Structure with Randomness", SIAM Review 53, 2011 (arXiv
0909.4061), algorithms 4.4 and 5.3.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from gradex.errors import GradexError
from gradex.gradients.derived import Arrays, derived, source_digests
from gradex.gradients.row_views import RowView
from gradex.gradients.store import GradientStore
from gradex.progress import progress

VERSION = "basis-1"
OVERSAMPLING = 10  # directions drawn beyond those kept, as the paper advises
POWER_PASSES = 2  # after the first: gradients' spectra fall slowly
log = logging.getLogger(__name__)

Directions = Float[np.ndarray, "dim direction"]


@dataclass(frozen=True)
class Compression:
    """An orthonormal basis, and the share of the source rows' squared norm that it keeps."""

    basis: Float[np.ndarray, "dim small"]
    kept: float

    def kept_of(self, vectors: Float[np.ndarray, "vector dim"]) -> Float[np.ndarray, " vector"]:
        """The share of each vector's squared norm that lies in the basis."""
        whole = (vectors**2).sum(1)
        return ((vectors @ self.basis) ** 2).sum(1) / np.where(whole > 0, whole, 1)


def compress(
    store: GradientStore,
    dim: int,
    *,
    sources: Sequence[str] | None = None,
    view: RowView | None = None,
    seed: int = 0,
) -> Compression:
    """The best basis of `dim` directions for the sources' rows as `view` sees them."""
    if dim < 1:
        raise GradexError(f"--compress: found {dim}, expected at least one dimension")
    view = replace(view or RowView(), basis=None)
    names = list(sources or store.sources)
    dim = min(dim, store.dim)
    digests = [source_digests(store, name) for name in names]
    found = derived(
        store,
        (VERSION, dim, seed, view.key, digests),
        lambda: _leading_directions(store, names, view, dim, seed),
        is_whole=lambda arrays: (
            set(arrays) == {"basis", "kept"} and arrays["basis"].shape == (store.dim, dim)
        ),
    )
    return Compression(found["basis"], float(found["kept"]))


def _leading_directions(
    store: GradientStore,
    names: Sequence[str],
    view: RowView,
    dim: int,
    seed: int,
) -> Arrays:
    drawn = min(dim + OVERSAMPLING, store.dim)
    basis = np.random.default_rng(seed).normal(size=(store.dim, drawn))
    with progress("compress", (POWER_PASSES + 2) * len(names), unit="source") as bar:

        def gram_times(q: Directions) -> tuple[Directions, float]:
            return _gram_times(store, names, view, q, done=bar.update)

        for _ in range(POWER_PASSES + 1):
            basis = np.linalg.qr(gram_times(basis)[0])[0]
        product, squared_norm = gram_times(basis)
    values, vectors = np.linalg.eigh(basis.T @ product)
    kept = values[-dim:].sum() / squared_norm if squared_norm > 0 else 1.0
    return {"basis": basis @ vectors[:, ::-1][:, :dim], "kept": np.array(kept)}


def _gram_times(
    store: GradientStore,
    names: Sequence[str],
    view: RowView,
    q: Directions,
    *,
    done: Callable[[], object],
) -> tuple[Directions, float]:
    """W^T W q and the squared norm of W, in one pass over the store."""
    product, squared_norm = np.zeros_like(q), 0.0
    for name in names:
        store.require_undamaged("train", name)
        for block in store.blocks("train", name):
            rows = view(block)
            product += rows.T @ (rows @ q)
            squared_norm += float((rows**2).sum())
        done()
    return product, squared_norm


def log_kept(compression: Compression, slopes: Float[np.ndarray, "target dim"]) -> None:
    """One line: what the estimates no longer see."""
    shares = compression.kept_of(slopes)
    log.info(
        "compressed %d dims to %d: %.4g of the source rows' squared norm is kept, and %.4g of the "
        "targets' mean gradients' (least %.4g)",
        *compression.basis.shape, compression.kept, shares.mean(), shares.min(),
    )  # fmt: skip
