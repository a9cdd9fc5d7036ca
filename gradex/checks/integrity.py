"""Every file of a store: what it should be, what it is, and what does not belong there.

Damage makes the store's numbers wrong or missing; what is left over is read by nobody.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from gradex.adapters.points import points_in
from gradex.checks.inspection import REDO, Fault, Inspection, file_names, inspect_shard
from gradex.data.subsets import encode_name
from gradex.errors import GradexError
from gradex.gradients.description import Side, fingerprint
from gradex.gradients.store import GradientStore
from gradex.progress import progress
from gradex.records import read_json

MANIFEST = {"fingerprint": str, "slow_layers": dict}
ANEW = "make the store anew with project, in another --output_dir"
REMOVE = "nothing reads these: remove them"
Entry = tuple[Side, str]
SHARD_FILE = re.compile(r"shard-\d+\..*")


@dataclass(frozen=True)
class Part:
    """What is known of a source's or target's rows, with a hash of each stored gradient."""

    side: Side
    name: str
    table: np.ndarray
    hashes: UInt64[np.ndarray, " row"]
    left_out: dict[str, int]
    bad: dict[str, int]


@dataclass
class Examination:
    """All that reading a store once has shown."""

    parts: list[Part] = field(default_factory=list)
    damage: list[Fault] = field(default_factory=list)
    left_over: list[Fault] = field(default_factory=list)
    slow_layers: dict[str, str] = field(default_factory=dict)
    size: int = 0


def examine(store: GradientStore) -> Examination:
    """Read all files of a store, one shard at a time."""
    manifest = read_json(store.path / "manifest.json", "a gradient store's manifest", MANIFEST)
    found = Examination(slow_layers=manifest["slow_layers"])
    found.damage += _faults_of_the_whole(store, manifest["fingerprint"])
    unsound = {entry: _fault_of_the_entry(store, *entry) for entry in store.entries()}
    found.damage += [fault for fault in unsound.values() if fault is not None]
    sound = [entry for entry, fault in unsound.items() if fault is None]
    total = sum(store.plan[side][name]["shards"] for side, name in sound)
    with progress("shards", total, unit="shard") as bar:
        for side, name in sound:
            part, faults = _examine_part(store, side, name, bar.update)
            found.parts.append(part)
            found.damage += faults
    files = _files(store)
    found.size = sum(file.stat().st_size for file in files)
    unknown = set(unsound) - set(sound)
    found.left_over = list(_left_over(store, files, sound, unknown))
    return found


def examine_point(point: GradientStore, store: GradientStore) -> Examination:
    """The same for a store at an earlier point, which is to hold the rows of the one it lies in."""
    found = examine(point)
    if point.plan != store.plan:
        what = f"{point.path}/plan.json: not of the sources and rows of {store.path}"
        found.damage.append(Fault(what, REDO))
    return found


def _files(store: GradientStore) -> list[Path]:
    """Its own: those of its points are looked at with them."""
    points = set(points_in(store.path).values())
    files = [file for file in sorted(store.path.rglob("*")) if file.is_file()]
    return [file for file in files if points.isdisjoint(file.parents)]


def _faults_of_the_whole(store: GradientStore, recorded: str) -> Iterator[Fault]:
    """The files that all shards share."""
    if recorded != fingerprint(store.space):
        what = "its fingerprint is not that of its space: one of the two was changed"
        yield Fault(f"{store.path}/manifest.json: {what}", ANEW)
    try:
        _ = store.origin
        _ = store.precondition
    except GradexError as error:
        yield Fault(str(error), ANEW)


def _fault_of_the_entry(store: GradientStore, side: Side, name: str) -> Fault | None:
    entry = store.plan[side][name]
    rows, shards = entry["rows"], entry["shards"]
    if store.shard_rows > 0 and rows >= 0 and shards == -(-rows // store.shard_rows):
        return None
    what = f"{rows} rows of '{name}' ({side}) in {shards} shards of {store.shard_rows}"
    return Fault(f"{store.path}/plan.json: {what} do not add up", REDO)


def _examine_part(
    store: GradientStore, side: Side, name: str, advance: Callable[[], object]
) -> tuple[Part, list[Fault]]:
    rows, found = store.plan[side][name]["rows"], [Inspection()]
    for shard in store.shards(side, name):
        expected = min(store.shard_rows, rows - shard.index * store.shard_rows)
        found.append(inspect_shard(shard, store.space, rows=expected))
        advance()
    left_out, bad = found[0].left_out, found[0].bad
    for one in found[1:]:
        left_out.update(one.left_out)
        bad.update(one.bad)
    part = Part(
        side,
        name,
        np.concatenate([one.table for one in found]),
        np.concatenate([one.hashes for one in found]),
        dict(left_out),
        dict(bad),
    )
    return part, [fault for one in found for fault in one.faults]


def _left_over(
    store: GradientStore, files: list[Path], sound: list[Entry], unsound: Iterable[Entry]
) -> Iterator[Fault]:
    """Files that are in no plan. Those of an entry that does not add up may yet be needed."""
    names = ("manifest.json", "origin.json", "plan.json", "precondition.npy")
    known = {store.path / name for name in names}
    for side, name in sound:
        for shard in store.shards(side, name):
            known |= {shard.folder / file for file in file_names(shard, store.space)}
            known.add(shard.receipt)
    spared = {store.path / side / encode_name(name) for side, name in unsound}
    for file in files:
        is_sum = file.parent == store.path / "stats" and file.suffix == ".npz"
        if file not in known and file.parent not in spared and not is_sum:
            yield Fault(f"{file}: {_kind(file)}", REMOVE)


def _kind(file: Path) -> str:
    if file.suffix == ".tmp":
        return "half a file, left by a process that was killed"
    return "a shard beyond the plan" if SHARD_FILE.fullmatch(file.name) else "no file of a store"
