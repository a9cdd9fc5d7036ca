"""Rows that a person should look at: far too long, zero, or there more than once.

A row is an outlier where its norm is over TIMES its source's median, and the logarithm of its norm
lies over MADS median absolute deviations (scaled to a normal distribution's) above the median's:
both are of the middle of the rows, which no outlier moves.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from gradex.checks.integrity import Part

MADS, TIMES = 6.0, 10.0
NORMAL = 1.4826  # standard deviations of a normal distribution in one median absolute deviation
WORST = 20
RULE = (
    f"norm over {TIMES:g} times the median of its source, and its logarithm over {MADS:g} scaled "
    "MADs above the median's"
)


@dataclass(frozen=True)
class Summary:
    """A source or target in numbers; None where it has no good row."""

    side: str
    name: str
    rows: int
    good: int
    median_norm: float | None
    max_norm: float | None
    mean_loss: float | None
    zero_rows: int
    outliers: int
    left_out: dict[str, int]
    bad: dict[str, int]


@dataclass(frozen=True)
class Outlier:
    """A row whose gradient is far longer than its source's others."""

    side: str
    source: str
    row: str
    norm: float
    times_median: float


@dataclass(frozen=True)
class Duplicates:
    """Rows that count more than once. Sources that share rows are named with how many."""

    within_a_source: int
    in_several_sources: int
    shared_by: dict[str, int]
    trained_on_and_in_a_target: int
    equal_gradients: int
    examples: list[list[str]]


def summarise(part: Part) -> Summary:
    good = part.table[part.table["ok"]]
    norms = good["grad_norm"].astype(np.float64)
    return Summary(
        part.side,
        part.name,
        len(part.table),
        len(good),
        float(np.median(norms)) if len(good) else None,
        float(norms.max()) if len(good) else None,
        float(good["loss"].mean(dtype=np.float64)) if len(good) else None,
        int((norms == 0).sum()),
        int(_is_outlier(part.table).sum()),
        part.left_out,
        part.bad,
    )


def _is_outlier(table: np.ndarray) -> Bool[np.ndarray, " row"]:
    counted = table["ok"] & (table["grad_norm"] > 0)
    if not counted.any():
        return counted
    logs = np.log(table["grad_norm"], where=counted, out=np.zeros(len(table)))
    middle = np.median(logs[counted])
    spread = NORMAL * np.median(np.abs(logs[counted] - middle))
    return counted & (logs > middle + MADS * spread) & (logs > middle + np.log(TIMES))


def outliers(parts: Sequence[Part]) -> list[Outlier]:
    """The worst of them, first those that are furthest from their source."""
    found: list[Outlier] = []
    for part in parts:
        norms = part.table["grad_norm"].astype(np.float64)
        for row in np.flatnonzero(_is_outlier(part.table)):
            median = np.median(norms[part.table["ok"] & (norms > 0)])
            name = part.table["id"][row].decode()
            found.append(Outlier(part.side, part.name, name, norms[row], norms[row] / median))
    return sorted(found, key=lambda outlier: -outlier.times_median)[:WORST]


def duplicates(parts: Sequence[Part]) -> Duplicates:
    """Equal ids among the training rows and the targets', and equal gradients of any."""
    sources = {part.name: np.unique(part.table["id"]) for part in parts if part.side == "train"}
    rows = sum(len(part.table) for part in parts if part.side == "train")
    ids = _joined(list(sources.values()))
    targets = _joined([part.table["id"] for part in parts if part.side == "target"])
    shared = _shared(sources, ids)
    groups = list(_equal_gradients(parts))
    return Duplicates(
        rows - len(ids),
        sum(shared.values()),
        dict(shared.most_common()),
        len(np.intersect1d(ids, targets)),
        sum(map(len, groups)),
        groups[:WORST],
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, "S32"), *arrays])


def _shared(sources: dict[str, np.ndarray], ids: np.ndarray) -> Counter[str]:
    """Names of sources, put together -> how many rows just these hold."""
    found, counts = np.unique(ids, return_counts=True)
    several = found[counts > 1]
    holders: dict[bytes, list[str]] = {row: [] for row in several.tolist()}
    for name, own in sources.items():
        for row in np.intersect1d(own, several).tolist():
            holders[row].append(name)
    return Counter(" + ".join(names) for names in holders.values())


def _equal_gradients(parts: Sequence[Part]) -> Iterator[list[str]]:
    """Groups of different rows with the same bytes, as `source: id`; rows of zeros are no news."""
    kept = [part.table["ok"] & (part.table["grad_norm"] > 0) for part in parts]
    hashes = np.concatenate(
        [np.zeros(0, np.uint64), *(p.hashes[k] for p, k in zip(parts, kept, strict=True))]
    )
    ids = _joined([p.table["id"][k] for p, k in zip(parts, kept, strict=True)])
    owner = np.repeat(np.arange(len(parts)), [int(k.sum()) for k in kept])
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    found: dict[int, dict[bytes, str]] = {}
    for row in np.flatnonzero(counts[group] > 1):
        found.setdefault(int(group[row]), {})[ids[row]] = parts[owner[row]].name
    for names in found.values():
        if len(names) > 1:
            yield [f"{name}: {row.decode()}" for row, name in names.items()]
