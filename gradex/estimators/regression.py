"""What the estimators share that fit one displacement to a subset's gradients: all but the solve.

With A_S = sum g g^T and b_S = sum g over the n rows of a subset S, as they are seen (see
row_views), a solve makes the displacement z of A_S / n, b_S / n and tau = tr(A_all) / n_all, one
scale for the whole store. Target t is predicted to move from its loss L_t at the meta adapter to
L_t + mean(G_t) z. A_S and b_S are sums over sources, so that no subset's rows are read again; the
matrices are packed, half the numbers of full ones.

Target rows are soft by default and in units of loss: g m / (norm(g) + m), m their median norm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.estimators.packed import diagonal
from gradex.estimators.packed_sums import compressed_dim, packed_sums
from gradex.estimators.protocol import Estimates, members, named_or_all, uncalibrated
from gradex.estimators.solves import Grams, Solve
from gradex.estimators.subset_sums import subset_sums
from gradex.gradients.compress import Compression, compress, log_kept
from gradex.gradients.row_views import RowNorm, RowView, require_row_norm, row_weights, source_view
from gradex.gradients.store import Block, GradientStore

FittedT = TypeVar("FittedT", bound="Regression")


class Regression:
    """See the module. Fitted values end in an underscore."""

    def __init__(
        self, solve: Solve, *, source_norm: RowNorm, target_norm: RowNorm, compress: int | None
    ):
        self.solve = solve
        self.compress = compress
        self.source_norm = require_row_norm(source_norm)
        self.target_norm = require_row_norm(target_norm)

    def fit(
        self: FittedT,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> FittedT:
        """Per-source sums and per-target mean gradients, one pass over the store."""
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        rows = [store.target(name, split) for name in self.targets_]
        self.loss_: Float[np.ndarray, " target"] = np.array(
            [float(block.table["loss"].mean()) for block in rows]
        )
        self.slope_: Float[np.ndarray, "target dim"] = np.stack(
            [target_rows(block, self.target_norm).mean(0) for block in rows]
        )
        view = source_view(store, self.sources_, self.source_norm)
        self.compression_ = self._compression(store, view)
        if self.compression_:
            view = replace(view, basis=self.compression_.basis)
        self.grams_, self.sums_, self.counts_ = packed_sums(store, self.sources_, view)
        traces = self.grams_[:, diagonal(self.sums_.shape[1])].sum(1, dtype=np.float64)
        _require_sound(traces, self.sources_, store)
        kept = self.compression_.kept if self.compression_ else 1.0
        self.tau_ = float(traces.sum() / self.counts_.sum()) / kept
        return self

    def _compression(self, store: GradientStore, view: RowView) -> Compression | None:
        """Fewer dimensions for the source rows, where they are asked for or memory asks."""
        dim = compressed_dim(store.dim, len(self.sources_), asked=self.compress)
        if dim is None:
            return None
        found = compress(store, dim, sources=self.sources_, view=view)
        log_kept(found, self.slope_)
        return found

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        member = members(subsets, self.sources_)
        value = np.concatenate([self.loss_ + z @ self.slope_.T for z in self._blocks(member)])
        return uncalibrated(self.targets_, value)

    def displacements(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Float[np.ndarray, "subset dim"]:
        """z for each row of a membership matrix."""
        return np.concatenate(list(self._blocks(member)))

    def _blocks(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Iterator[Float[np.ndarray, "_ dim"]]:
        start = 0
        for grams in subset_sums(member, self.grams_):
            z = self._solved(member[start : start + len(grams)], grams)
            start += len(grams)
            yield z @ self.compression_.basis.T if self.compression_ else z

    def _solved(
        self, member: Float[np.ndarray, "subset source"], grams: Grams
    ) -> Float[np.ndarray, "subset small"]:
        counts = (member @ self.counts_)[:, None]
        grams /= counts
        z = self.solve(grams, member @ self.sums_ / counts, self.tau_)
        for row in np.flatnonzero(~np.isfinite(z).all(1)):
            names = [self.sources_[i] for i in np.flatnonzero(member[row])]
            raise GradexError(
                f"the gradients of {', '.join(names[:5])}{', ...' if names[5:] else ''} leave "
                "directions open, so that the regression has no solution; raise --lam"
            )
        return z


def target_rows(block: Block, norm: RowNorm) -> Float[np.ndarray, "row dim"]:
    """A target's gradients as they are seen, in units of its loss at the median norm."""
    norms = block.table["grad_norm"].astype(np.float64)
    middle = float(np.median(norms))
    weights = row_weights(norms, norm, middle) * (1 if norm == "raw" else middle)
    return block.gradients * weights[:, None]


def _require_sound(
    traces: Float[np.ndarray, " source"], names: Sequence[str], store: GradientStore
) -> None:
    for name, trace in zip(names, traces, strict=True):
        if not np.isfinite(trace) or trace <= 0:
            raise GradexError(
                f"{store.path}: the gradients of source '{name}' are all zero or not finite; "
                "select without it, or project it again"
            )
