"""What the estimators share that fit margins row by row: all but the fit.

To first order, a displacement z of the adapter moves the margin of row i from m_i to m_i + g_i z,
so that its loss is softplus(-(m_i + g_i z)). A fit makes a displacement of the rows of a subset,
and target t is predicted to have the loss mean_t softplus(-(m_t + g_t z)).

Which margin a row of several label tokens has is a choice.
- objective "margin": the mean of its tokens' margins, as published. A poor summary: tokens beyond
  doubt outweigh the ones still wrong, and softplus of the mean is at most the mean of softplus.
- objective "loss": that of the probability exp(-L) which its mean loss L stands for,
  m = -log(exp(L) - 1) with gradient g = -dL / (1 - exp(-L)). Then softplus(-m) is L, and the fit
  starts from the true losses and their true gradients, rows as they are.

`fit` holds all rows of the sources, 4 bytes a number and twice that while they are joined;
`predict` adds up to 28 bytes a number for the rows of one subset at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.estimators.protocol import Estimates, members, named_or_all, uncalibrated
from gradex.gradients.store import Block, GradientStore
from gradex.models.losses import Objective
from gradex.progress import progress

LEAST_LOSS = np.float32(1e-30)  # a row without any loss has no gradient either
FittedT = TypeVar("FittedT", bound="MarginFit")


@dataclass(frozen=True)
class Rows:
    """Margins at the meta adapter, and their gradients."""

    margins: Float[np.ndarray, " row"]
    gradients: Float[np.ndarray, "row dim"]

    def loss(self, z: Float[np.ndarray, " dim"]) -> float:
        """The mean loss after a displacement, to first order in the margins."""
        return float(np.logaddexp(0, -(self.margins + self.gradients @ z)).mean())


class MarginFit(ABC):
    """See the module. Fitted values end in an underscore."""

    def __init__(self, objective: Objective):
        self.objective: Objective = objective

    @abstractmethod
    def displacement_of(
        self, rows: Rows, sources: Int[np.ndarray, " chosen"]
    ) -> Float[np.ndarray, " dim"]:
        """z of a subset's rows; `sources` are the places of its sources."""

    def fit(
        self: FittedT,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> FittedT:
        """All margins and their gradients, one pass over the store."""
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        self.rows_, self.parts_ = _read_sources(store, self.sources_, self.objective)
        self.tau_ = float(np.square(self.rows_.gradients).sum(1, dtype=np.float64).mean())
        if self.tau_ == 0:
            raise GradexError(f"{store.path}: all gradients are zero; nothing can be estimated")
        blocks = [store.target(t, split, objective=self.objective) for t in self.targets_]
        self.target_rows_ = [_in_double(_rows(block, self.objective)) for block in blocks]
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        member = members(subsets, self.sources_)
        value = np.empty((len(member), len(self.targets_)))
        with progress("logistic fits", len(member), unit="subset") as bar:
            for index, chosen in enumerate(member):
                z = self.displacement(chosen)
                value[index] = [rows.loss(z) for rows in self.target_rows_]
                bar.update()
        return uncalibrated(self.targets_, value)

    def displacement(self, chosen: Float[np.ndarray, " source"]) -> Float[np.ndarray, " dim"]:
        """z for one row of a membership matrix."""
        sources = np.flatnonzero(chosen)
        place = np.concatenate([np.r_[self.parts_[source]] for source in sources])
        rows = _in_double(Rows(self.rows_.margins[place], self.rows_.gradients[place]))
        return self.displacement_of(rows, sources)


def _read_sources(
    store: GradientStore, names: Sequence[str], objective: Objective
) -> tuple[Rows, list[slice]]:
    """The rows of all sources in one piece, and where those of each source are."""
    found: list[Rows] = []
    with progress("margins", len(names), unit="source") as bar:
        for name in names:
            store.require_undamaged("train", name)
            found.append(_rows(store.source(name, objective=objective), objective))
            bar.update()
    ends = np.cumsum([0, *(len(rows.margins) for rows in found)]).tolist()
    margins = np.concatenate([rows.margins for rows in found])
    gradients = np.concatenate([rows.gradients for rows in found])
    return Rows(margins, gradients), [slice(start, end) for start, end in pairwise(ends)]


def _rows(block: Block, objective: Objective) -> Rows:
    if objective == "margin":
        return Rows(block.table["margin"], block.gradients)
    loss = np.maximum(block.table["loss"], LEAST_LOSS)
    miss = -np.expm1(-loss)  # 1 - exp(-L)
    return Rows(-loss - np.log(miss), -block.gradients / miss[:, None])


def _in_double(rows: Rows) -> Rows:
    return Rows(rows.margins.astype(np.float64), rows.gradients.astype(np.float64))
