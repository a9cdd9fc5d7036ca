"""Which shards a store is to have: the rows of every source and target, cut in their order."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradex.data.formats import Row
from gradex.data.sources import Source, Sources
from gradex.errors import GradexError
from gradex.gradients.description import Side
from gradex.gradients.shards import (
    ROW_TYPE,
    ShardPath,
    read_receipt,
    read_table,
    rows_hash,
    sha256,
    why_incomplete,
)
from gradex.gradients.store import GradientStore

log = logging.getLogger(__name__)
PARTS: dict[Side, tuple[str, ...]] = {"train": ("train",), "target": ("select", "test")}


@dataclass(frozen=True)
class ShardSpec:
    """One shard to make: whose it is, its place, its rows and their splits."""

    name: str
    path: ShardPath
    rows: tuple[Row, ...]
    splits: tuple[str, ...]

    @property
    def key(self) -> str:
        return rows_hash([row.id for row in self.rows], self.splits)


def plan_shards(store: GradientStore, sources: Sources) -> list[ShardSpec]:
    """Enter every source and target into the store's plan; the shards that are still to make."""
    specs: list[ShardSpec] = []
    store.clear_plan()
    for side, name in _sides(sources):
        specs += _specs(store, side, sources[name])
    todo = _todo(store, specs)
    store.save_plan()
    return todo


def _sides(sources: Sources) -> Iterator[tuple[Side, str]]:
    yield from (("train", name) for name in sources.trainable)
    yield from (("target", name) for name in sources.targets)


def _specs(store: GradientStore, side: Side, source: Source) -> list[ShardSpec]:
    rows = [(row, part) for part in PARTS[side] for row in source.rows[part]]
    paths = store.enter(side, source.name, rows=len(rows), data_hash=source.data_hash)
    size = store.shard_rows
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [
        ShardSpec(source.name, path, *map(tuple, zip(*chunk, strict=True)))
        for path, chunk in zip(paths, chunks, strict=True)
    ]


def _todo(store: GradientStore, specs: list[ShardSpec]) -> list[ShardSpec]:
    """Those without a valid receipt; says what is there, and why what is damaged is done again.

    Their receipts go first: from here until it is made again such a shard is not complete, neither
    for a reader nor for a run after one that was killed between two of its files.
    """
    todo = []
    for spec in specs:
        reason = why_incomplete(spec.path, spec.key)
        if reason is None:
            continue
        todo.append(spec)
        if spec.path.receipt.exists():
            log.warning("%s; the shard is made again", reason)
            spec.path.receipt.unlink()
    if 0 < len(todo) < len(specs) or not todo:
        log.info("%s: %d of %d shards are there", store.path, len(specs) - len(todo), len(specs))
    return todo


def require_only_added(store: GradientStore, sources: Sources) -> None:
    """Refuse to append where rows or sources of the store are gone or have moved."""
    for name in (*store.sources, *store.targets):
        if name not in sources:
            raise GradexError(
                f"{store.path}: holds '{name}', which the tasks no longer have; --append only adds"
            )
    for name in store.sources:
        _require_kept(store, "train", sources[name])
    for name in store.targets:
        _require_kept(store, "target", sources[name])


def _require_kept(store: GradientStore, side: Side, source: Source) -> None:
    """Training rows stay where they are, so that full shards do; a target's only have to stay."""
    for shard in store.shards(side, source.name):
        table = _known_table(shard)
        start = shard.index * store.shard_rows
        for split in PARTS[side]:
            kept = table["id"][table["split"] == split.encode()].astype(str).tolist()
            rows = [row.id for row in source.rows[split]]
            stay = set(kept) <= set(rows)
            if side == "train":
                stay = rows[start : start + len(kept)] == kept
            if not stay:
                raise GradexError(
                    f"{source.path}: the {split} rows of '{source.name}' are not those of "
                    f"{shard.receipt} with others after them; --append only adds, so put new rows "
                    "at the end of the file"
                )


def _known_table(shard: ShardPath) -> np.ndarray:
    """The rows of a shard; none where it is damaged or not there, and made again anyway."""
    file = shard.file(".rows.npy")
    try:
        receipt = read_receipt(shard)
        if file.is_file() and receipt["files"].get(file.name) == sha256(file):
            return read_table(file, rows=receipt["rows"])
    except GradexError:
        pass
    return np.zeros(0, ROW_TYPE)
