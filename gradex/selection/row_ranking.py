"""Single rows ranked by their influence on a target, the best of them chosen.

    score(i) = mean over points of  sum_t w_t cos(g_i, mean g_t) / sum_t w_t

of a training row's gradient with the mean of the soft gradients of each target's select rows: the
row lowers the target's loss the more, the higher its score. Rows have unit length, so that long
answers are not preferred. LESS without Adam's moments: Xia et al., ICML 2024 (arXiv 2402.04333),
section 3.2, with this project's points of the meta-training in the place of its checkpoints.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from gradex.errors import GradexError
from gradex.estimators.protocol import named_or_all
from gradex.estimators.regression import target_rows
from gradex.gradients.across_points import all_points, blocks_at_points
from gradex.gradients.row_views import RowView
from gradex.gradients.shards import LEAST_NORM
from gradex.gradients.store import GradientStore
from gradex.selection.choice import Choice

UNIT = RowView("unit")


@dataclass(frozen=True)
class RowScores:
    """The good rows of all sources, each with its score; `source` counts through `sources`."""

    sources: list[str]
    source: Int[np.ndarray, " row"]
    ids: np.ndarray
    score: Float[np.ndarray, " row"]

    def best(self, count: int) -> list[tuple[str, str, float]]:
        """Source, id and score of so many rows, the best first; equal ones by their ids."""
        order = np.lexsort((self.source, self.ids, -self.score))[:count]
        names = [self.sources[i] for i in self.source[order]]
        return list(
            zip(names, self.ids[order].astype(str), map(float, self.score[order]), strict=True)
        )


def rank_rows(
    store: GradientStore,
    targets: Mapping[str, float],
    *,
    top: float,
    sources: Sequence[str] | None = None,
    split: str = "select",
) -> Choice:
    """The best rows for weighted targets: a share of all, or so many where `top` is 1 or more."""
    return best_rows(score_rows(store, targets, sources=sources, split=split), top=top)


def score_rows(
    store: GradientStore,
    targets: Mapping[str, float],
    *,
    sources: Sequence[str] | None = None,
    split: str = "select",
) -> RowScores:
    """One pass over the rows of every source and point; only their scores are kept."""
    names, _ = named_or_all(store, sources, list(targets))
    points = all_points(store)
    wanted = [_wanted(point, targets, split) for point in points]
    parts = [
        (number, ids, score)
        for number, name in enumerate(names)
        for ids, score in _scored(points, name, wanted)
    ]
    source = np.concatenate([np.full(len(ids), number) for number, ids, _ in parts])
    ids, score = (np.concatenate([part[at] for part in parts]) for at in (1, 2))
    return RowScores(names, source, ids, score)


def best_rows(scores: RowScores, *, top: float) -> Choice:
    """The sources that hold chosen rows, that with the best one first, each with its rows.

    `scores` of the choice are how many rows of each source were chosen; its value is minus their
    mean score, as the estimator `cosine` has it.
    """
    best = scores.best(_count(top, len(scores.ids)))
    rows: dict[str, list[str]] = {}
    for source, row, _ in best:
        rows.setdefault(source, []).append(row)
    counts = {name: float(len(rows.get(name, ()))) for name in scores.sources}
    value = -float(np.mean([score for *_, score in best]))
    return Choice(list(rows), value, counts, _trace(scores, rows), rows=rows)


def _count(top: float, total: int) -> int:
    if not 0 < top <= total or (top > 1 and top != int(top)):
        raise GradexError(
            f"--top: found {top:g}, expected a share of the {total} rows below 1, or a "
            "whole number of them"
        )
    return int(top) if top >= 1 else math.ceil(top * total)


def _trace(scores: RowScores, rows: Mapping[str, Sequence[str]]) -> list[dict]:
    """How many rows each source has, and how many were chosen: the rows themselves are many."""
    totals = np.bincount(scores.source, minlength=len(scores.sources))
    total_of = dict(zip(scores.sources, map(int, totals), strict=True))
    return [
        {"step": step, "added": name, "rows": len(chosen), "of": total_of[name]}
        for step, (name, chosen) in enumerate(rows.items(), start=1)
    ]


def _wanted(
    store: GradientStore, targets: Mapping[str, float], split: str
) -> Float[np.ndarray, " dim"]:
    """The weighted mean of the targets' directions: a product with it is the mean of cosines."""
    total = sum(targets.values())
    found = np.zeros(store.dim)
    for name, weight in targets.items():
        mean = target_rows(store.target(name, split), "soft").mean(0)
        length = float(np.linalg.norm(mean))
        if length <= LEAST_NORM:
            raise GradexError(
                f"{store.path}: the {split} rows of target '{name}' have no gradient in common, so "
                "that no row can be told to help it; leave the target out"
            )
        found += weight / total * mean / length
    return found


def _scored(
    points: Sequence[GradientStore], name: str, wanted: Sequence[Float[np.ndarray, " dim"]]
) -> Iterator[tuple[np.ndarray, Float[np.ndarray, " row"]]]:
    """Ids and scores of a source's rows, a shard at a time."""
    for point in points:
        point.require_undamaged("train", name)
    for blocks in blocks_at_points(points, "train", name):
        cosines = [UNIT(block) @ way for block, way in zip(blocks, wanted, strict=True)]
        yield blocks[0].table["id"], np.mean(cosines, axis=0)
