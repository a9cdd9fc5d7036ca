"""Rows as all points of a store show them: the same rows, once at each point.

Gradients are sketched anew at every point of the meta-training (see `GradientStore.points`), so
that a comparison of rows which is averaged over the points is surer than one at a single point. A
row without a finite gradient at one of them is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from gradex.gradients.description import Side
from gradex.gradients.shards import LEAST_NORM
from gradex.gradients.store import Block, GradientStore


def all_points(store: GradientStore) -> list[GradientStore]:
    """The store itself first, then those at its earlier points."""
    return [store, *store.points()]


def blocks_at_points(
    points: Sequence[GradientStore], side: Side, name: str
) -> Iterator[list[Block]]:
    """A block of each point, all of the same rows, a shard at a time."""
    for blocks in zip(*(point.blocks(side, name) for point in points), strict=True):
        yield [_among(block, blocks) for block in blocks]


def _among(block: Block, others: Sequence[Block]) -> Block:
    """The rows of a block that all others hold, too; a source holds no row twice."""
    keep = np.ones(len(block.table), dtype=bool)
    for other in others:
        keep &= np.isin(block.table["id"], other.table["id"])
    return Block(block.gradients[keep], block.table[keep])


@dataclass(frozen=True)
class Directions:
    """Rows at unit norm, side by side for all points: products of two are their mean cosines."""

    table: np.ndarray
    vectors: Float[np.ndarray, "row feature"]


def directions(points: Sequence[GradientStore], name: str) -> Iterator[Directions]:
    """The directions of a source's rows, a shard at a time; a row whose gradient is next to
    nothing at some point has none, and is left out."""
    for blocks in blocks_at_points(points, "train", name):
        keep = np.logical_and.reduce([_has_direction(block) for block in blocks])
        parts = [_unit(block.gradients[keep]) for block in blocks]
        yield Directions(blocks[0].table[keep], np.hstack(parts) / np.sqrt(len(parts)))


def _has_direction(block: Block) -> Bool[np.ndarray, " row"]:
    return (np.linalg.norm(block.gradients, axis=1) > LEAST_NORM) & (
        block.table["grad_norm"] > LEAST_NORM
    )


def _unit(rows: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row dim"]:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
