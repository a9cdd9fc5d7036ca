"""First-order estimates of single target rows: their loss, and their margin where it is kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.estimators.protocol import Displacing, members
from gradex.gradients.store import GradientStore
from gradex.models.losses import Objective


@dataclass(frozen=True)
class RowOutcomes:
    """One target: predicted numbers of every subset and row; no margin in a store without."""

    target: str
    ids: list[str]
    loss: Float[np.ndarray, "subset row"]
    margin: Float[np.ndarray, "subset row"] | None


def row_outcomes(
    fitted: Displacing,
    store: GradientStore,
    subsets: Sequence[Subset],
    targets: Sequence[str],
    *,
    split: str = "select",
) -> Iterator[RowOutcomes]:
    """A target at a time: L + g z and m + dm z of each row, at each subset's displacement z."""
    z = fitted.displacements(members(subsets, store.sources))
    kept = str(store.space["differentiate"])

    def along(target: str, objective: Objective) -> Float[np.ndarray, "subset row"]:
        block = store.target(target, split, objective=objective)
        return block.table[objective].astype(np.float64) + z @ block.gradients.T

    for target in targets:
        table = store.target(target, split, objective="loss").table
        margin = along(target, "margin") if kept == "both" else None
        ids = [row.decode() for row in table["id"]]
        yield RowOutcomes(target, ids, along(target, "loss"), margin)
