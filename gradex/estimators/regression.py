"""What the estimators share that fit one displacement to a subset's gradients: all but the solve.

With A_S = sum g g^T and b_S = sum g over the n rows of a subset S, as they are seen (see
row_views), a solve makes the displacement z of A_S / n, b_S / n and tau = tr(A_all) / n_all, one
scale for the whole store. Target t is predicted to move from its loss L_t at the meta adapter to
L_t + mean(G_t) z. A_S and b_S are sums over sources, so that the matrices of any number of subsets
are one matrix product; they are packed, half the numbers of full ones.

Target rows are soft by default and in units of loss: g m / (norm(g) + m), m their median norm.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.estimators.protocol import Estimates, members, uncalibrated
from gradex.estimators.solves import Solve, diagonal, pack, packed_size
from gradex.gradients.row_views import RowNorm, require_row_norm, row_weights, source_view
from gradex.gradients.statistics import source_sums
from gradex.gradients.store import Block, GradientStore
from gradex.progress import progress

BLOCK_SUBSETS = 64  # solved at once: enough for the matrix product to be one of matrices
BLOCK_BYTES = 2**27
FittedT = TypeVar("FittedT", bound="Regression")


class Regression:
    """See the module. Fitted values end in an underscore."""

    def __init__(
        self, solve: Solve, *, source_norm: RowNorm = "unit", target_norm: RowNorm = "soft"
    ):
        self.solve = solve
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
        self.sources_ = list(sources or store.sources)
        self.targets_ = list(targets or store.targets)
        if not self.sources_ or not self.targets_:
            raise GradexError(f"{store.path}: holds no source or no target; run project again")
        self._sum_up(store)
        rows = [store.target(name, split) for name in self.targets_]
        self.loss_: Float[np.ndarray, " target"] = np.array(
            [float(block.table["loss"].mean()) for block in rows]
        )
        self.slope_: Float[np.ndarray, "target dim"] = np.stack(
            [target_slope(block, self.target_norm) for block in rows]
        )
        return self

    def _sum_up(self, store: GradientStore) -> None:
        view = source_view(store, self.sources_, self.source_norm)
        count, dim = len(self.sources_), view.dim(store)
        self.grams_: Float[np.ndarray, "source packed"] = np.empty((count, packed_size(dim)))
        self.sums_: Float[np.ndarray, "source dim"] = np.empty((count, dim))
        self.counts_: Float[np.ndarray, " source"] = np.empty(count)
        with progress("statistics", count, unit="source") as bar:
            for i, name in enumerate(self.sources_):
                found = source_sums(store, name, view=view)
                self.grams_[i] = pack(found.gram)
                self.sums_[i], self.counts_[i] = found.total, found.count
                bar.update()
        traces = self.grams_[:, diagonal(dim)].sum(1)
        _require_sound(traces, self.sources_, store)
        self.tau_ = float(traces.sum() / self.counts_.sum())

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        z = self.displacements(members(subsets, self.sources_))
        return uncalibrated(self.targets_, self.loss_ + z @ self.slope_.T)

    def displacements(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Float[np.ndarray, "subset dim"]:
        """z for each row of a membership matrix."""
        step = min(BLOCK_SUBSETS, max(1, BLOCK_BYTES // self.grams_[0].nbytes))
        parts = [member[i : i + step] for i in range(0, len(member), step)]
        return np.concatenate([self._block(part) for part in parts])

    def _block(self, member: Float[np.ndarray, "subset source"]) -> Float[np.ndarray, "subset dim"]:
        share = member / (member @ self.counts_)[:, None]
        z = self.solve(share @ self.grams_, share @ self.sums_, self.tau_)
        for row in np.flatnonzero(~np.isfinite(z).all(1)):
            names = [
                name for name, within in zip(self.sources_, member[row], strict=True) if within
            ]
            raise GradexError(
                f"the gradients of {', '.join(names[:5])}{', ...' if names[5:] else ''} leave "
                "directions open, so that the regression has no solution; raise --lam"
            )
        return z


def target_slope(block: Block, norm: RowNorm) -> Float[np.ndarray, " dim"]:
    """The mean gradient of a target, in units of its loss at the median norm."""
    norms = block.table["grad_norm"].astype(np.float64)
    middle = float(np.median(norms))
    weights = row_weights(norms, norm, middle) * (1 if norm == "raw" else middle)
    return (block.gradients * weights[:, None]).mean(0)


def _require_sound(
    traces: Float[np.ndarray, " source"], names: Sequence[str], store: GradientStore
) -> None:
    for name, trace in zip(names, traces, strict=True):
        if not np.isfinite(trace) or trace <= 0:
            raise GradexError(
                f"{store.path}: the gradients of source '{name}' are all zero or not finite; "
                "select without it, or project it again"
            )
