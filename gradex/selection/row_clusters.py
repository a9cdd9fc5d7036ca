"""Clusters of rows whose gradients point the same way, so that each can be a source of its own.

Rows are compared by the cosine of their sketched gradients:

- `agglomerate`: average linkage, as Li, Zhang and Zhang, "Scalable Fine-tuning from Multiple Data
  Sources: A First-Order Approximation Approach" (EMNLP 2024 Findings, arXiv 2409.19458), group the
  rows of chain-of-thought sets. It compares every row with every other.
- `k_means`: mini-batches of Sculley, "Web-Scale K-Means Clustering" (WWW 2010): after m rows of a
  cluster, the mean of the next n moves its centre by n / (m + n) of the way. It reads the rows a
  block at a time and begins from the k-means of a sample.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from gradex.errors import GradexError
from gradex.gradients.across_points import directions
from gradex.gradients.store import GradientStore
from gradex.selection.shares import apportion

MOST_COMPARED = 20_000  # rows, of which a table of all pairs takes some 5 GB
SAMPLE = 10_000  # rows that k-means begins with, or so many a cluster:
SAMPLE_A_CLUSTER = 20
BEGINNINGS, PASSES = 10, 3

Rows = Float[np.ndarray, "row feature"]
Labels = Int[np.ndarray, " row"]
ReadBlocks = Callable[[], Iterator[Rows]]  # the same rows, each time it is called
Method = Literal["agglomerative", "kmeans"]


@dataclass(frozen=True)
class Clusters:
    """The rows of a source that have a direction, each with its loss and its cluster: 0 is the
    largest."""

    ids: list[str]
    loss: Float[np.ndarray, " row"]
    label: Labels

    @property
    def rows(self) -> list[list[str]]:
        """The ids of each cluster's rows."""
        found: list[list[str]] = [[] for _ in range(int(self.label.max()) + 1)]
        for row, label in zip(self.ids, self.label.tolist(), strict=True):
            found[label].append(row)
        return found

    @property
    def mean_loss(self) -> Float[np.ndarray, " cluster"]:
        return np.bincount(self.label, weights=self.loss) / np.bincount(self.label)


def cluster_rows(
    points: Sequence[GradientStore], name: str, count: int, *, method: Method, seed: int
) -> Clusters:
    """The rows of a source in clusters, by their gradients at all points."""
    for point in points:
        point.require_undamaged("train", name)
    tables = np.concatenate([block.table for block in directions(points, name)])
    if len(tables) < count:
        raise GradexError(
            f"--num_clusters: found {count} for the {len(tables)} rows of '{name}' that have a "
            "gradient, expected at most as many"
        )

    def read() -> Iterator[Rows]:
        return (block.vectors for block in directions(points, name))

    if method == "agglomerative":
        require_few_enough(len(tables))
        labels = agglomerate(np.concatenate(list(read())), count)
    else:
        labels = k_means(read, count, seed=seed)
    ids = tables["id"].astype(str).tolist()
    return Clusters(ids, tables["loss"].astype(np.float64), by_size(labels, ids))


def require_few_enough(rows: int) -> None:
    """Before they are all read."""
    if rows > MOST_COMPARED:
        raise GradexError(
            f"--method agglomerative: compares all pairs of {rows} rows, which is made for at most "
            f"{MOST_COMPARED}; say --method kmeans"
        )


def agglomerate(rows: Rows, count: int) -> Labels:
    """Exactly `count` clusters of unit rows; it does not matter in which order they stand."""
    if count == 1:
        return np.zeros(len(rows), dtype=np.int64)
    order = np.lexsort(rows.T)  # equal distances are met in the order of the rows
    apart = np.clip(1 - rows[order] @ rows[order].T, 0, 2)
    np.fill_diagonal(apart, 0)
    model = AgglomerativeClustering(count, metric="precomputed", linkage="average")
    labels = np.empty(len(rows), dtype=np.int64)
    labels[order] = model.fit_predict(apart)
    return labels


def k_means(read: ReadBlocks, count: int, *, seed: int) -> Labels:
    """At most `count` clusters of unit rows, of which one block at a time is held."""
    centres, seen = _begin(read, count, seed)
    for _ in range(PASSES):
        for block in read():
            _learn(centres, seen, block)
    return np.concatenate([_nearest(block, centres) for block in read()])


def _begin(
    read: ReadBlocks, count: int, seed: int
) -> tuple[Float[np.ndarray, "cluster feature"], Float[np.ndarray, " cluster"]]:
    """The centres of a sample's clusters, and how many of its rows each has seen."""
    sample = _sample(read, max(SAMPLE, SAMPLE_A_CLUSTER * count), seed)
    model = KMeans(count, n_init=BEGINNINGS, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows make fewer clusters
        labels = model.fit_predict(sample)
    return model.cluster_centers_.copy(), np.bincount(labels, minlength=count).astype(np.float64)


def _sample(read: ReadBlocks, size: int, seed: int) -> Rows:
    """Rows at random places, or all where there are no more."""
    total = sum(len(block) for block in read())
    chosen = np.zeros(total, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(total)[:size]] = True
    kept, start = [], 0
    for block in read():
        kept.append(block[chosen[start : start + len(block)]])
        start += len(block)
    return np.concatenate(kept)


def _learn(
    centres: Float[np.ndarray, "cluster feature"],
    seen: Float[np.ndarray, " cluster"],
    block: Rows,
) -> None:
    """Move the centres, in place, by the rows that are nearest to each."""
    labels = _nearest(block, centres)
    added = np.bincount(labels, minlength=len(centres)).astype(np.float64)
    total = np.zeros_like(centres)
    np.add.at(total, labels, block)
    seen += added
    centres += (total - added[:, None] * centres) / np.maximum(seen, 1)[:, None]


def _nearest(block: Rows, centres: Float[np.ndarray, "cluster feature"]) -> Labels:
    """By the cosine: a centre is a mean of unit rows, shorter the less they agree."""
    length = np.maximum(np.linalg.norm(centres, axis=1), np.finfo(np.float64).tiny)
    return np.argmax(block @ (centres / length[:, None]).T, axis=1)


def by_size(labels: Labels, ids: Sequence[str]) -> Labels:
    """The clusters numbered anew from 0: the largest first, of equal ones that with the first id.

    Numbers that nothing belongs to fall away.
    """
    names, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    first: dict[int, str] = {}
    for at, row in zip(place.tolist(), ids, strict=True):
        first[at] = min(first.get(at, row), row)
    order = sorted(range(len(names)), key=lambda at: (-sizes[at], first[at]))
    number = np.empty(len(names), dtype=np.int64)
    number[order] = np.arange(len(names))
    return number[place]


def share_out(count: int, rows: Sequence[int]) -> list[int]:
    """How many of `count` clusters each source gets: one, and of the rest a share as its rows."""
    room = [n - 1 for n in rows]
    more = apportion(room, count - len(rows)) if any(room) else room
    return [1 + share for share in more]
