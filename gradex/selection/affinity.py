"""Sources that go well together: groups by what subsets with two of them are estimated to give.

    T_t(s, u) = mean estimate for target t of the sampled subsets that hold both s and u

as Li, Zhang, Sharma and Zhang, "Efficient Ensemble for Fine-tuning Language Models on Multiple
Datasets" (ACL 2025, arXiv 2505.21930), have it, where every source is a target. Here sources and
targets may differ, and a source moves its own target more than all others do; each T_t is
therefore taken by its ranks, from -1 for the two sources with the lowest loss to 1. Two sources are
alike if every third one does as well beside the one as beside the other, on every target:

    distance(s, u)^2 = mean over targets and sources v of  (rank T_t(s, v) - rank T_t(u, v))^2

Like a selector, this knows nothing of gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata
from sklearn.metrics import silhouette_score

from gradex.errors import GradexError

MOST_GROUPS = 8  # where their number is chosen: each is an adapter to train


@dataclass(frozen=True)
class Affinity:
    """How well two sources do together (the mean of ranks, -1 is best), and how unlike they are."""

    sources: list[str]
    together: Float[np.ndarray, "source source"]
    distance: Float[np.ndarray, "source source"]


def affinity(
    member: Float[np.ndarray, "subset source"],
    value: Float[np.ndarray, "subset target"],
    sources: Sequence[str],
) -> Affinity:
    """Of subsets, given by their members, and their estimates: lower is better."""
    count = member.T @ member
    _require_seen(count, sources, len(member))
    together, squares = np.zeros_like(count), np.zeros_like(count)
    for column in value.T:
        ranks = _ranks((member.T * column) @ member / count)
        together += ranks
        squares += _squared_distances(ranks)
    targets = value.shape[1]
    distance = np.sqrt(squares / (targets * len(sources)))
    return Affinity(list(sources), together / targets, distance)


def group_sources(found: Affinity, count: int | None = None) -> list[list[str]]:
    """So many groups (Ward's clustering), each in the order of the sources; where no number is
    given, that whose groups are the furthest apart (silhouette), at most MOST_GROUPS."""
    require_possible(count, len(found.sources))
    if len(found.sources) == 1:
        return [found.sources]
    tree = linkage(squareform(found.distance, checks=False), method="ward")
    label = cut_tree(tree, n_clusters=count or _best_count(tree, found))[:, 0]
    groups: dict[int, list[str]] = {}
    for name, number in zip(found.sources, label.tolist(), strict=True):
        groups.setdefault(number, []).append(name)
    return list(groups.values())


def require_possible(count: int | None, sources: int) -> None:
    if count is not None and not 1 <= count <= sources:
        raise GradexError(
            f"--num_groups: found {count}, expected a number from 1 to that of the sources, "
            f"{sources}"
        )


def _best_count(tree: Float[np.ndarray, "merge 4"], found: Affinity) -> int:
    counts = range(2, min(MOST_GROUPS, len(found.sources) - 1) + 1)
    if not counts:
        return len(found.sources)
    return max(counts, key=lambda count: _silhouette(cut_tree(tree, count)[:, 0], found))


def _silhouette(label: Int[np.ndarray, " source"], found: Affinity) -> float:
    return float(silhouette_score(found.distance, label, metric="precomputed"))


def _require_seen(
    count: Float[np.ndarray, "source source"], sources: Sequence[str], total: int
) -> None:
    for row, column in np.argwhere(count == 0):
        raise GradexError(
            f"{sources[row]} and {sources[column]} are together in none of the {total} subsets, so "
            "that nothing is known of them; sample more of them (--num_subsets), or larger ones "
            "(--subset_size)"
        )


def _ranks(matrix: Float[np.ndarray, "source source"]) -> Float[np.ndarray, "source source"]:
    """A symmetric matrix by the ranks of its pairs, from -1 to 1; equal numbers share a rank."""
    above = np.triu_indices(len(matrix))
    rank = rankdata(matrix[above]) - 1
    ranks = np.zeros_like(matrix)
    ranks[above] = 2 * rank / max(len(rank) - 1, 1) - 1
    return np.triu(ranks) + np.triu(ranks, 1).T


def _squared_distances(rows: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row row"]:
    """Of every two rows; what rounding leaves below zero is zero."""
    product = rows @ rows.T
    square = np.diag(product)
    return np.maximum(square[:, None] + square - 2 * product, 0)
