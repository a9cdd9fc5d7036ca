"""The cheap estimates that every other one is printed beside.

All but two compare a mean over the subset's rows with a mean over the target's:

- `influence`: the change of the target's loss by one plain gradient step on the subset's mean loss,
  - mean(g_S) . mean(g_t), from gradients as they are. TracIn's first-order term at one checkpoint:
  Pruthi et al., NeurIPS 2020 (arXiv 2002.08484).
- `cosine`: minus the mean cosine of the gradients of a subset's row and a target's row, over all
  pairs. LESS without Adam's moments: Xia et al., ICML 2024 (arXiv 2402.04333), section 3.2.
- `representation`: minus the cosine of mean hidden states (see gradex/gradients/features.py), as
  RDS+ compares rows: Ivison et al., 2025 (arXiv 2503.01807).
- `ngram`: KL(target || subset) of the distributions of hashed words and pairs of words, which is
  DSIR's "KL reduction" up to a constant: Xie et al., NeurIPS 2023 (arXiv 2302.03169).

`random` draws a value for each subset, and `constant` says that nothing changes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import xxhash
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.estimators.ngrams import divergence, open_ngrams
from gradex.estimators.protocol import Estimates, members, named_or_all, uncalibrated
from gradex.gradients.description import Side
from gradex.gradients.row_views import RowView
from gradex.gradients.shards import LEAST_NORM
from gradex.gradients.store import GradientStore

BLOCK_NUMBERS = 2**24  # at most this many entries of subsets' means are held at once

Vectors = Float[np.ndarray, "row feature"]
Read = Callable[[Side, str, str], Iterator[Vectors]]  # side, name and split -> blocks of rows
Means = Float[np.ndarray, "subset feature"]
Wanted = Float[np.ndarray, "target feature"]
Compare = Callable[[Means, Wanted], Float[np.ndarray, "subset target"]]


class Comparison:
    """A subset's mean vector held against each target's. Fitted values end in an underscore.

    `open_rows` tells how a store's rows become vectors, `compare` how two means become a value.
    """

    def __init__(self, open_rows: Callable[[GradientStore], Read], compare: Compare):
        self.open_rows, self.compare = open_rows, compare

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Comparison":
        """Per-source sums and per-target means, one pass over the rows."""
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        read = self.open_rows(store)
        summed = [_summed(read("train", name, "train"), store, name) for name in self.sources_]
        self.sums_: Float[np.ndarray, "source feature"] = np.stack([total for total, _ in summed])
        self.counts_: Float[np.ndarray, " source"] = np.array([float(n) for _, n in summed])
        wanted = [_summed(read("target", name, split), store, name) for name in self.targets_]
        self.wanted_: Wanted = np.stack([b / n for b, n in wanted])
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        member = members(subsets, self.sources_)
        step = max(1, BLOCK_NUMBERS // self.sums_.shape[1])
        blocks = [member[i : i + step] for i in range(0, len(member), step)]
        values = [self.compare(self._means(block), self.wanted_) for block in blocks]
        return uncalibrated(self.targets_, np.concatenate(values))

    def _means(self, member: Float[np.ndarray, "subset source"]) -> Means:
        return (member @ self.sums_) / (member @ self.counts_)[:, None]


def influence() -> Comparison:
    return Comparison(partial(_gradients, view=RowView("raw")), _minus_product)


def cosine() -> Comparison:
    return Comparison(partial(_gradients, view=RowView("unit")), _minus_product)


def representation() -> Comparison:
    return Comparison(_features, _minus_cosine)


def ngram(*, allow_pickle: bool = False) -> Comparison:
    """`allow_pickle` is for the files of rows, which are read again."""
    return Comparison(partial(open_ngrams, allow_pickle=allow_pickle), divergence)


class Random:
    """A draw for each subset and target: the same wherever the subset stands in a list."""

    def __init__(self, *, seed: int = 0):
        self.seed = seed

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Random":
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        members(subsets, self.sources_)
        values = [[self._draw(subset, name) for name in self.targets_] for subset in subsets]
        return uncalibrated(self.targets_, np.array(values))

    def _draw(self, subset: Subset, target: str) -> float:
        key = "\n".join([str(self.seed), target, *sorted(subset)])
        return xxhash.xxh3_64_intdigest(key.encode()) / 2**64


class Constant:
    """Each target's loss at the meta adapter, whatever the subset."""

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Constant":
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        losses = [store.target(name, split).table["loss"].mean() for name in self.targets_]
        self.loss_: Float[np.ndarray, " target"] = np.array(losses, dtype=np.float64)
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        member = members(subsets, self.sources_)
        return uncalibrated(self.targets_, np.tile(self.loss_, (len(member), 1)))


def _summed(
    blocks: Iterator[Vectors], store: GradientStore, name: str
) -> tuple[Float[np.ndarray, " feature"], int]:
    """The sum of a source's or target's rows, and their number."""
    total, count = np.zeros(()), 0
    for block in blocks:
        total = total + block.sum(0, dtype=np.float64)
        count += len(block)
    if count == 0:
        raise GradexError(f"{store.path}: '{name}' has no good row; leave it out")
    return total, count


def _gradients(store: GradientStore, *, view: RowView) -> Read:
    """Sketched gradients as they are, or each at unit norm."""

    def read(side: Side, name: str, split: str) -> Iterator[Vectors]:
        store.require_undamaged(side, name)
        yield from map(view, store.blocks(side, name, split=split))

    return read


def _minus_product(subsets: Means, targets: Wanted) -> Float[np.ndarray, "subset target"]:
    return -subsets @ targets.T


def _features(store: GradientStore) -> Read:
    """Hidden states, from a store that was made with them."""

    def read(side: Side, name: str, split: str) -> Iterator[Vectors]:
        store.require_undamaged(side, name)
        yield from store.features(side, name, split=split)

    return read


def _minus_cosine(subsets: Means, targets: Wanted) -> Float[np.ndarray, "subset target"]:
    return _minus_product(_unit(subsets), _unit(targets))


def _unit(vectors: Vectors) -> Vectors:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norm, LEAST_NORM)
