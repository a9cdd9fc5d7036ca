"""Mean gradients of sources and targets, and those of resampled rows, in one pass over the store.

The bootstrap of a mean needs no second look at a row: a resample is how often each row is drawn,
and the mean over it a weighted one (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993). The draws are those of as many rows as there are, with replacement, dealt out a shard at a
time, so that a store may be larger than memory.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from jaxtyping import Float, Int

from gradex.errors import GradexError
from gradex.gradients.description import Side
from gradex.gradients.row_views import RowNorm, RowView, source_view
from gradex.gradients.store import GradientStore
from gradex.progress import progress

# The means of all rows come first, those of the resamples after them.
SourceMeans = Float[np.ndarray, "draw source dim"]
TargetMeans = Float[np.ndarray, "draw target dim"]


def source_means(
    store: GradientStore, names: Sequence[str], norm: RowNorm, *, resamples: int = 0, seed: int = 0
) -> SourceMeans:
    """The mean gradients of the sources' rows, seen at lengths that the norm says."""
    view = source_view(store, names, norm)
    with progress("mean gradients", len(names), unit="source") as bar:
        found = []
        for name in names:
            found.append(_means(store, "train", name, view, draws=(resamples, seed)))
            bar.update()
    return np.stack(found, axis=1)


def target_means(
    store: GradientStore, names: Sequence[str], norm: RowNorm, *, resamples: int = 0, seed: int = 0
) -> TargetMeans:
    """The same of the targets' select rows, each target with a median norm of its own."""
    found = []
    for name in names:
        table = store.table("target", name)
        norms = table["grad_norm"][table["split"] == b"select"]
        view = RowView(norm, float(np.median(norms)) if len(norms) else 0.0)
        found.append(_means(store, "target", name, view, split="select", draws=(resamples, seed)))
    return np.stack(found, axis=1)


def _means(
    store: GradientStore,
    side: Side,
    name: str,
    view: RowView,
    *,
    draws: tuple[int, int],
    split: str | None = None,
) -> Float[np.ndarray, "draw dim"]:
    """float32: there may be thousands of sources, each with its draws."""
    store.require_undamaged(side, name)
    table = store.table(side, name)
    count = len(table) if split is None else int((table["split"] == split.encode()).sum())
    if count == 0:
        raise GradexError(f"{store.path}: '{name}' has no good row; leave it out")
    resamples, seed = draws
    # A name's draws are its own: another source in the store does not change them.
    rng = np.random.default_rng([seed, xxhash.xxh3_64_intdigest(f"{side} {name}".encode())])
    total, deal = np.zeros((1 + resamples, view.dim(store))), Resamples(resamples, count)
    for block in store.blocks(side, name, split=split):
        rows = view(block)
        times = deal.next(len(rows), rng)
        total += np.vstack([np.ones(len(rows)), times]) @ rows
    return (total / count).astype(np.float32)


class Resamples:
    """As many draws as there are rows, with replacement, told a few rows at a time.

    Of the next n rows, where m are still to come, Binomial(draws left, n / m) are drawn, evenly
    spread: together that is the multinomial distribution over all rows.
    """

    def __init__(self, resamples: int, rows: int):
        self.left = np.full(resamples, rows)
        self.rows = rows

    def next(self, rows: int, rng: np.random.Generator) -> Int[np.ndarray, "resample row"]:
        """How often each of the next rows is drawn, in each resample."""
        if rows == 0:
            return np.zeros((len(self.left), 0), dtype=int)
        here = rng.binomial(self.left, rows / self.rows)
        self.left, self.rows = self.left - here, self.rows - rows
        return rng.multinomial(here, np.full(rows, 1 / rows), size=len(here))
