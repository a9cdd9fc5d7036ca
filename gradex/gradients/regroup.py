"""The same rows under other sources: a store made of another's shards, without a model.

What a row's gradient is does not depend on the source it stands in. Every number is copied as it
is stored, at every point that the old store has. The new store is built as `.part` and renamed
when it is whole; one that a process left half-done is gone on with.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gradex import runs
from gradex.adapters.points import point_folder
from gradex.data.sources import Sources
from gradex.gradients.collect import OBJECTIVES
from gradex.gradients.description import Side
from gradex.gradients.plan import ShardSpec, plan_shards
from gradex.gradients.shards import (
    FEATURES,
    ROW_TYPE,
    Faults,
    Parts,
    ShardPath,
    read_features,
    read_gradients,
    read_receipt,
    read_table,
    write_shard,
)
from gradex.gradients.store import GradientStore
from gradex.progress import progress
from gradex.records import read_json

BYTES_AT_ONCE = 2**28  # of the rows that one pass over the old shards gathers
Arrays = tuple[np.ndarray, ...]


def regroup(
    old: GradientStore,
    path: Path,
    sources: Sources,
    *,
    of: Mapping[str, str],
    origin: dict[str, Any],
) -> GradientStore:
    """The store at `path`, of `sources` whose rows are all in the old store: those of a source in
    the one that `of` names, or in that of its own name."""
    if not GradientStore.exists(path):
        part = path.with_name(path.name + ".part")
        _fill(_begun(part, old, origin), old, sources, of)
        for point in old.points():
            step = int(point.path.name)
            _fill(_begun(point_folder(part, step), point, origin), point, sources, of)
        part.rename(path)
    return GradientStore.open(path)


def _begun(path: Path, old: GradientStore, origin: dict[str, Any]) -> GradientStore:
    """A store of the old one's space, empty or as far as it came."""
    if GradientStore.exists(path):
        return GradientStore.open(path)
    manifest = read_json(old.path / "manifest.json", "a store's manifest", {"slow_layers": dict})
    return GradientStore.create(
        path,
        old.space,
        origin=origin,
        shard_rows=old.shard_rows,
        slow_layers=manifest["slow_layers"],
        precondition=old.precondition,
    )


def _fill(
    store: GradientStore, old: GradientStore, sources: Sources, of: Mapping[str, str]
) -> None:
    """Make the shards that are not there yet."""
    with runs.locked(store.path):
        todo = plan_shards(store, sources)
        with progress("shards", len(todo), unit="shard") as bar:
            for (side, name), specs in groupby(todo, key=lambda spec: _place(spec, of)):
                old.require_undamaged(side, name)
                for batch in _batches(list(specs), old.shards(side, name)):
                    _copy(old.shards(side, name), batch, old.space)
                    bar.update(len(batch))


def _place(spec: ShardSpec, of: Mapping[str, str]) -> tuple[Side, str]:
    """The side and the name under which the old store has the rows of a shard."""
    if spec.splits[0] == "train":
        return "train", of.get(spec.name, spec.name)
    return "target", spec.name


def _batches(specs: Sequence[ShardSpec], shards: Sequence[ShardPath]) -> Iterator[list[ShardSpec]]:
    """Shards to make whose rows are gathered in one pass over the old ones."""
    receipt = read_receipt(shards[0])
    size = sum((shards[0].folder / name).stat().st_size for name in receipt["files"])
    at_once = max(1, BYTES_AT_ONCE * receipt["rows"] // size)
    batch: list[ShardSpec] = []
    for spec in specs:
        batch.append(spec)
        if sum(len(one.rows) for one in batch) >= at_once:
            yield batch
            batch = []
    if batch:
        yield batch


def _copy(shards: Sequence[ShardPath], specs: Sequence[ShardSpec], space: dict[str, Any]) -> None:
    """Write shards whose rows are among those of the old ones."""
    receipts = [read_receipt(shard) for shard in shards]
    keys = [_keys(spec.splits, [row.id for row in spec.rows]) for spec in specs]
    found = _gather(shards, np.concatenate(keys), space)
    start = 0
    for spec in specs:
        part = slice(start, start + len(spec.rows))
        parts = {ending: tuple(array[part] for array in kept) for ending, kept in found.items()}
        faults = Faults(*(_told_of(spec, receipts, key) for key in ("left_out", "bad")))
        write_shard(spec.path, parts, faults=faults, versions=receipts[0].get("versions", {}))
        start = part.stop


def _told_of(spec: ShardSpec, receipts: Sequence[dict], key: str) -> dict[str, str]:
    """What the receipts of the old shards say of rows that are in a new one."""
    ids = {row.id for row in spec.rows}
    return {row: why for one in receipts for row, why in one[key].items() if row in ids}


def _keys(splits: Sequence[str] | np.ndarray, ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """What tells a row from all others of one side of a source: two splits may hold one row."""
    kinds = (ROW_TYPE["split"], ROW_TYPE["id"])
    return np.char.add(*(np.array(v, dtype=k) for v, k in zip((splits, ids), kinds, strict=True)))


def _gather(shards: Sequence[ShardPath], wanted: np.ndarray, space: dict[str, Any]) -> Parts:
    """The wanted rows in their order, as they are stored, from one pass over the shards."""
    order = np.argsort(wanted, kind="stable")
    ranked = wanted[order]
    seen = np.zeros(len(wanted), dtype=bool)
    out: Parts = {}
    for shard in shards:
        parts = _arrays(shard, space)
        keys = _keys(parts[""][1]["split"], parts[""][1]["id"])
        at = np.searchsorted(ranked, keys).clip(max=len(ranked) - 1)
        here = ranked[at] == keys
        places = order[at[here]]
        seen[places] = True
        for ending, arrays in parts.items():
            out[ending] = _room_for(arrays, len(wanted), out.get(ending))
            _put(out[ending], arrays, here, places)
    assert seen.all(), "a row of the new store is not in the old one"
    return out


def _room_for(arrays: Arrays, count: int, kept: Arrays | None) -> Arrays:
    """Zeros like the arrays, for more rows, or what was kept of other shards. One without a good
    row has features of no width."""
    if kept is not None and kept[0].shape[1] >= arrays[0].shape[1]:
        return kept
    return tuple(np.zeros((count, *array.shape[1:]), array.dtype) for array in arrays)


def _put(out: Arrays, arrays: Arrays, here: np.ndarray, places: np.ndarray) -> None:
    if arrays[0].shape[1]:
        for room, array in zip(out, arrays, strict=True):
            room[places] = array[here]


def _arrays(shard: ShardPath, space: dict[str, Any]) -> Parts:
    """All arrays of a shard, the large ones memory-mapped."""
    count, parts = read_receipt(shard)["rows"], {}
    for objective in (objectives := OBJECTIVES[space["differentiate"]]):
        ending = "" if objective == objectives[0] else f".{objective}"
        file = shard.file(f"{ending}.npy")
        stored = read_gradients(file, rows=count, dim=space["project_dim"], dtype=space["dtype"])
        parts[ending] = (stored, read_table(shard.file(f"{ending}.rows.npy"), rows=count))
    if space.get("features"):
        parts[FEATURES] = (read_features(shard.file(f"{FEATURES}.npy"), rows=count),)
    return parts
