"""The gradient store: sketched gradients of every row, by source, in one space.

    manifest.json, ...   what describes the store (see description)
    train/<source>/      shards of the training rows
    target/<target>/     shards of the select and test rows
    stats/<key>.npz      sums over the rows of a source (see statistics): derived
    points/<step>/       stores of the same rows at adapters from earlier in the meta-training

Stores of different spaces cannot be compared, so every reader checks the fingerprint of the space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped

from gradex.adapters.points import points_in
from gradex.errors import GradexError
from gradex.gradients.description import DescribedStore, Side
from gradex.gradients.shards import (
    FEATURES,
    MEND,
    ROW_TYPE,
    ShardPath,
    damages,
    read_features,
    read_gradients,
    read_receipt,
    read_table,
)
from gradex.models.losses import Objective
from gradex.records import read_json
from gradex.runs import newest

# What a point has of its own; all else of its space is that of its store.
OWN_AT_A_POINT = ("adapter", "precondition", "seed", "projection")


@dataclass(frozen=True)
class Block:
    """Rows of one shard: gradients in float32 and the table that describes them."""

    gradients: Float[np.ndarray, "row dim"]
    table: np.ndarray


class GradientStore(DescribedStore):
    """A store whose rows can be read, a shard at a time."""

    def points(self) -> list["GradientStore"]:
        """The stores at earlier points of the meta-training, in order; each must be complete."""
        points = [GradientStore.open(folder) for folder in points_in(self.path).values()]
        own = {key: self.space[key] for key in OWN_AT_A_POINT if key in self.space}
        for point in points:
            self.require_same_space(point.space | own, other=str(point.path))
            if point.plan != self.plan:
                raise GradexError(
                    f"{point.path}: does not hold the rows of {self.path} yet; run project again "
                    "to finish the store"
                )
            for side, name in point.entries():
                point.receipts(side, name)
        return points

    def receipts(self, side: Side, name: str) -> list[dict]:
        return [read_receipt(shard) for shard in self.shards(side, name)]

    def require_undamaged(self, side: Side, name: str) -> None:
        """Refuse shards whose bytes are not those of their receipts."""
        for shard in self.shards(side, name):
            for damage in damages(shard, read_receipt(shard)):
                raise GradexError(f"{damage}; {MEND}")

    def table(self, side: Side, name: str) -> np.ndarray:
        """What is known of the good rows, without their gradients."""
        tables = [self._table(shard, "") for shard in self.shards(side, name)]
        return np.concatenate([table[table["ok"]] for table in tables])

    def _table(self, shard: ShardPath, ending: str) -> np.ndarray:
        rows = read_receipt(shard)["rows"]
        return read_table(shard.file(f"{ending}.rows.npy"), rows=rows)

    def blocks(
        self, side: Side, name: str, *, objective: Objective = "loss", split: str | None = None
    ) -> Iterator[Block]:
        """The good rows, a shard at a time, as float32: stores may be larger than memory."""
        ending = self._ending(objective)
        for shard in self.shards(side, name):
            table = self._table(shard, ending)
            file = shard.file(f"{ending}.npy")
            stored = self._stored(file, rows=len(table))
            keep = _kept(table, split)
            table = table[keep]
            gradients = stored[keep].astype(np.float32) * table["scale"][:, None]
            yield Block(_finite(gradients, file), table)

    def source(self, name: str, *, objective: Objective = "loss") -> Block:
        """All good training rows of a source."""
        return _joined(list(self.blocks("train", name, objective=objective)), f"source {name}")

    def target(self, name: str, split: str, *, objective: Objective = "loss") -> Block:
        """All good rows of a target's select or test split: few, and every estimate rests on them,
        so that their bytes are looked at."""
        self.require_undamaged("target", name)
        blocks = self.blocks("target", name, objective=objective, split=split)
        return _joined(list(blocks), f"target {name}'s {split} rows")

    def features(
        self, side: Side, name: str, *, split: str | None = None
    ) -> Iterator[Float[np.ndarray, "row hidden"]]:
        """The features of the good rows, a shard at a time (see features)."""
        if not self.space.get("features"):
            raise GradexError(
                f"{self.path}: holds no features of its rows; make a store with "
                "`project --features`"
            )
        for shard in self.shards(side, name):
            table = self._table(shard, "")
            file = shard.file(f"{FEATURES}.npy")
            keep = _kept(table, split)
            if keep.any():
                yield _finite(read_features(file, rows=len(table))[keep].astype(np.float32), file)

    def rows(
        self, ids: Sequence[str], *, source: str | None = None, objective: Objective = "loss"
    ) -> Float[np.ndarray, "row dim"]:
        """The gradients of training rows by id, in the order of the ids; reads no other row.

        Two sources may hold one row; name the source where that matters.
        """
        ending = self._ending(objective)
        wanted = np.array(ids, dtype=ROW_TYPE["id"])
        out = np.full((len(ids), self.dim), np.nan, dtype=np.float32)
        for name in self.sources if source is None else [source]:
            for shard in self.shards("train", name):
                table = self._table(shard, ending)
                order = np.argsort(table["id"], kind="stable")
                at = order[
                    np.searchsorted(table["id"], wanted, sorter=order).clip(0, len(table) - 1)
                ]
                found = (table["id"][at] == wanted) & table["ok"][at]
                stored = self._stored(shard.file(f"{ending}.npy"), rows=len(table))
                scale = table["scale"][at[found], None]
                out[found] = stored[at[found]].astype(np.float32) * scale
        missing = np.isnan(out).any(axis=1)
        if missing.any():
            raise GradexError(f"{self.path}: no good row with id {ids[int(missing.argmax())]}")
        return out

    def products(
        self,
        side: Side,
        name: str,
        directions: Float[np.ndarray, "dim direction"],
        *,
        objective: Objective = "loss",
    ) -> Float[np.ndarray, "row direction"]:
        """Good rows times directions, a shard at a time: the store may be larger than memory."""
        blocks = self.blocks(side, name, objective=objective)
        return np.concatenate([block.gradients @ directions for block in blocks])

    def _stored(self, file: Path, *, rows: int) -> Shaped[np.ndarray, "row dim"]:
        return read_gradients(file, rows=rows, dim=self.dim, dtype=self.space["dtype"])

    def _ending(self, objective: Objective) -> str:
        kept = self.space["differentiate"]
        if kept == "both":
            return "" if objective == "loss" else ".margin"
        if kept != objective:
            raise GradexError(
                f"{self.path}: holds gradients of the {kept}, this needs those of the {objective}; "
                f"make a store with `--differentiate {objective}` or both"
            )
        return ""


def _kept(table: np.ndarray, split: str | None) -> Bool[np.ndarray, " row"]:
    """Which rows are good, and of the split if one is named."""
    return table["ok"] if split is None else table["ok"] & (table["split"] == split.encode())


def _finite(
    numbers: Float[np.ndarray, "row number"], file: Path
) -> Float[np.ndarray, "row number"]:
    if not np.isfinite(numbers).all():
        raise GradexError(
            f"{file}: holds numbers that are not finite; `gradex doctor` says what to do"
        )
    return numbers


def _joined(blocks: list[Block], what: str) -> Block:
    if not any(len(block.table) for block in blocks):
        raise GradexError(f"{what}: the store holds no good row of it")
    return Block(
        np.concatenate([block.gradients for block in blocks]),
        np.concatenate([block.table for block in blocks]),
    )


def open_store(path: str | None) -> GradientStore:
    """The named store, or that of a run's folder; that of the newest run of project otherwise."""
    folder = newest("project") if path is None else Path(path)
    file = folder / "store.json"
    if path is None or file.is_file():
        what = "where a run left its store"
        folder = Path(read_json(file, what, {"store": str})["store"])
    return GradientStore.open(folder)
