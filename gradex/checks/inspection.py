"""One shard looked at closely: its bytes against the receipt, its rows and numbers in reason.

Of the gradients a hash a row is kept, so that equal ones are found again.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Shaped, UInt64

from gradex.errors import GradexError, unknown
from gradex.gradients.collect import OBJECTIVES
from gradex.gradients.shards import (
    FEATURES,
    LEAST_NORM,
    ROW_TYPE,
    ShardPath,
    damages,
    read_features,
    read_gradients,
    read_receipt,
    read_table,
    rows_hash,
)

REDO = "run project again: it makes these shards anew and leaves the others"
# project goes by the receipts: a shard that is as its receipt says stays as it is.
FORGET = "remove the receipts (.json) of these shards, then run project again"
# A sketch keeps norms in mean, with a relative spread of about 1 / sqrt(2 dim); of few dimensions
# a row may have next to nothing.
FACTOR, FEWEST_DIMS = 10.0, 16


@dataclass(frozen=True)
class Fault:
    """What is wrong with which file, and what to do about it."""

    what: str
    mend: str


@dataclass
class Inspection:
    """What was found in one shard; no rows where its bytes cannot be trusted."""

    faults: list[Fault] = field(default_factory=list)
    table: np.ndarray = field(default_factory=lambda: np.zeros(0, ROW_TYPE))
    hashes: UInt64[np.ndarray, " row"] = field(default_factory=lambda: np.zeros(0, np.uint64))
    left_out: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)


def inspect_shard(shard: ShardPath, space: dict[str, Any], *, rows: int) -> Inspection:
    """Look at a shard that is to hold `rows` rows of this space."""
    found = Inspection()
    if not shard.receipt.is_file():
        found.faults.append(Fault(f"{shard.receipt}: missing, the shard is not complete", REDO))
        return found
    try:
        receipt = read_receipt(shard)
    except GradexError as error:
        found.faults.append(Fault(_without_advice(error), REDO))
        return found
    found.faults += _disagreements(shard, receipt, space, rows)
    if found.faults:
        return found
    found.left_out.update(map(str, receipt["left_out"].values()))
    found.bad.update(map(str, receipt["bad"].values()))
    for ending in endings(space):
        try:
            _look_inside(found, shard, receipt, space, ending)
        except GradexError as error:
            found.faults.append(Fault(_without_advice(error), FORGET))
    if space.get("features") and not found.faults:
        found.faults += _faults_of_features(shard, found.table)
    return found


def endings(space: dict[str, Any]) -> list[str]:
    """What the names of a shard's arrays end in: the second objective has a name of its own."""
    if space["differentiate"] not in OBJECTIVES:
        raise unknown("objective", space["differentiate"], OBJECTIVES, "the store's manifest.json")
    _, *others = OBJECTIVES[space["differentiate"]]
    return ["", *(f".{objective}" for objective in others)]


def file_names(shard: ShardPath, space: dict[str, Any]) -> set[str]:
    """The arrays that a shard is to have."""
    suffixes = (f"{ending}{kind}" for ending in endings(space) for kind in (".npy", ".rows.npy"))
    names = {shard.file(suffix).name for suffix in suffixes}
    return names | ({shard.file(f"{FEATURES}.npy").name} if space.get("features") else set())


def _disagreements(
    shard: ShardPath, receipt: dict, space: dict[str, Any], rows: int
) -> Iterator[Fault]:
    """Where receipt, plan and bytes are not of one mind."""
    if set(receipt["files"]) != file_names(shard, space):
        yield Fault(f"{shard.receipt}: does not name the files that a shard has", FORGET)
        return
    yield from (Fault(what, REDO) for what in damages(shard, receipt))
    if receipt["rows"] != rows:
        what = f"{receipt['rows']} rows where the plan has {rows}"
        yield Fault(f"{shard.receipt}: tells of {what}", REDO)


def _look_inside(
    found: Inspection, shard: ShardPath, receipt: dict, space: dict[str, Any], ending: str
) -> None:
    table = read_table(shard.file(f"{ending}.rows.npy"), rows=receipt["rows"])
    file = shard.file(f"{ending}.npy")
    dim, dtype = space["project_dim"], space["dtype"]
    stored = read_gradients(file, rows=len(table), dim=dim, dtype=dtype)
    ids, splits = (np.char.decode(table[key], "ascii", "replace") for key in ("id", "split"))
    if rows_hash(ids.tolist(), splits.tolist()) != receipt["rows_hash"]:
        found.faults.append(Fault(f"{file}: of other rows than its receipt tells of", FORGET))
    found.faults += (Fault(f"{file}: {what}", FORGET) for what in _oddities(stored, table))
    if not ending:
        found.table, found.hashes = table, _hashes(stored, table)


def _faults_of_features(shard: ShardPath, table: np.ndarray) -> Iterator[Fault]:
    file = shard.file(f"{FEATURES}.npy")
    try:
        features = read_features(file, rows=len(table))[table["ok"]]
    except GradexError as error:
        yield Fault(_without_advice(error), FORGET)
        return
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        what = f"{(~finite).sum()} of {len(features)} good rows hold numbers that are not finite"
        yield Fault(f"{file}: {what}", FORGET)


def _oddities(stored: Shaped[np.ndarray, "row dim"], table: np.ndarray) -> Iterator[str]:
    """What no pass over a model leaves in the good rows."""
    good = table[table["ok"]]
    gradients = stored[table["ok"]].astype(np.float64) * good["scale"][:, None]
    numbers = [good[key] for key in ("loss", "margin", "grad_norm")]
    finite = np.isfinite(gradients).all(axis=1) & np.isfinite(numbers).all(axis=0)
    if not finite.all():
        yield f"{(~finite).sum()} of {len(good)} good rows hold numbers that are not finite"
    long = np.linalg.norm(gradients, axis=1)
    told = good["grad_norm"].astype(np.float64)
    least = told / FACTOR if stored.shape[1] >= FEWEST_DIMS else 0
    absurd = finite & (np.maximum(long, told) > LEAST_NORM)
    absurd &= (long > told * FACTOR) | (long < least)
    if absurd.any():
        worst = int(absurd.argmax())
        yield (
            f"{absurd.sum()} of {len(good)} good rows are {FACTOR:g} times longer or shorter than "
            f"their grad_norm, as row {good['id'][worst].decode()} ({long[worst]:.3g} for "
            f"{told[worst]:.3g})"
        )


def _hashes(stored: Shaped[np.ndarray, "row dim"], table: np.ndarray) -> UInt64[np.ndarray, " row"]:
    """A hash of each row's stored bytes with its scale."""
    rows = zip(np.ascontiguousarray(stored), table["scale"], strict=True)
    hashed = [xxhash.xxh3_64_intdigest(row.tobytes() + scale.tobytes()) for row, scale in rows]
    return np.array(hashed, np.uint64)


def _without_advice(error: GradexError) -> str:
    """Readers advise to run project again, which looks at receipts and hashes alone."""
    return str(error).split("; run project again")[0]
