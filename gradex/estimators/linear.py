"""The linear estimate: ridge regression of "every loss falls by one" on the subset's gradients.

With g_i the (normalised) sketched loss gradients of the n samples of a subset S, the regression's
solution is the displacement
    z = -(A_S / n + lam tau I)^-1 b_S / n,     A_S = sum g g^T,  b_S = sum g,
and target t is predicted to move from its loss L_t at the meta adapter to L_t + mean(G_t) z.
tau = tr(A_all) / n_all is one scale for the whole store. A_S and b_S are sums over sources, so that
any number of subsets is one matrix product and one batched solve.

Rows with large gradients would dominate the sums: source rows are taken at unit norm, target rows
as g / (norm(g) + median norm), times the median norm so that they stay in units of loss.

Method: Li et al., "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", Findings of EMNLP 2024 (arXiv 2409.19458), here in its least-squares form.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.estimators.protocol import Estimates, members, uncalibrated
from gradex.gradients.statistics import source_sums
from gradex.gradients.store import Block, GradientStore
from gradex.progress import progress

BLOCK_NUMBERS = 2**24  # at most this many matrix entries are solved at once


class Linear:
    """See the module. Fitted values end in an underscore."""

    def __init__(self, *, lam: float = 0.01):
        self.lam = lam

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Linear":
        """Per-source sums and per-target mean gradients, one pass over the store."""
        self.sources_ = list(sources or store.sources)
        self.targets_ = list(targets or store.targets)
        if not self.sources_ or not self.targets_:
            raise GradexError(f"{store.path}: holds no source or no target; run project again")
        with progress("statistics", len(self.sources_), unit="source") as bar:
            found = []
            for name in self.sources_:
                found.append(source_sums(store, name))
                bar.update()
        self.grams_: Float[np.ndarray, "source dim dim"] = np.stack([s.gram for s in found])
        self.sums_: Float[np.ndarray, "source dim"] = np.stack([s.total for s in found])
        self.counts_: Float[np.ndarray, " source"] = np.array([float(s.count) for s in found])
        self.tau_ = np.trace(self.grams_.sum(0)) / self.counts_.sum()
        if self.tau_ == 0:
            raise GradexError(f"{store.path}: all gradients are zero; nothing can be estimated")
        losses, slopes = zip(*(_target(store.target(t, split)) for t in self.targets_), strict=True)
        self.loss_: Float[np.ndarray, " target"] = np.array(losses)
        self.slope_: Float[np.ndarray, "target dim"] = np.stack(slopes)
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        member = members(subsets, self.sources_)
        step = max(1, BLOCK_NUMBERS // self.sums_.shape[1] ** 2)
        blocks = [self._predict(member[i : i + step]) for i in range(0, len(member), step)]
        return uncalibrated(self.targets_, np.concatenate(blocks))

    def _predict(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Float[np.ndarray, "subset target"]:
        return self.loss_ + self.displacements(member) @ self.slope_.T

    def displacements(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Float[np.ndarray, "subset dim"]:
        """z for each row of a membership matrix."""
        dim = self.sums_.shape[1]
        n = member @ self.counts_
        gram = (member @ self.grams_.reshape(len(self.grams_), -1)).reshape(-1, dim, dim)
        gram /= n[:, None, None]
        gram[:, np.arange(dim), np.arange(dim)] += self.lam * self.tau_
        mean = (member @ self.sums_) / n[:, None]
        factor = torch.linalg.cholesky(torch.from_numpy(gram))
        return -torch.cholesky_solve(torch.from_numpy(mean)[..., None], factor)[..., 0].numpy()


def _target(block: Block) -> tuple[float, Float[np.ndarray, " dim"]]:
    """A target's mean loss and its soft mean gradient."""
    norm = block.table["grad_norm"].astype(np.float64)
    middle = float(np.median(norm))
    weight = middle / (norm + middle) if middle > 0 else np.zeros_like(norm)
    slope = (block.gradients * weight[:, None]).mean(0)
    return float(block.table["loss"].mean()), slope.astype(np.float64)
