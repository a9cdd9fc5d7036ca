"""The sources again: by the settings that an earlier stage recorded, and as that stage saw them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradex.data.sources import Sources, SplitRule, load_sources
from gradex.errors import GradexError
from gradex.records import read_json, require_shape


def load_data(settings: dict[str, Any]) -> Sources:
    """The sources of a run's settings, split as its rule says."""
    return load_sources(
        settings["tasks"],
        settings["target"],
        rule=SplitRule(held_out=settings["held_out"], seed=settings["split_seed"]),
        allow_pickle=settings["allow_pickle"],
    )


@dataclass(frozen=True)
class Seen:
    """The rows that a meta-training saw: a hash for each source, and all their ids."""

    hashes: dict[str, str]
    ids: frozenset[str]


def rows_seen(meta_dir: Path) -> Seen:
    """What a run of meta_train wrote of its sources."""
    file, what = meta_dir / "sources.json", "the sources of a run of meta_train"
    records = read_json(file, what, {"sources": dict})["sources"]
    for name, record in records.items():
        shape = {"data_hash": str, "splits": dict}
        require_shape(record, shape, where=f"{file}: {name}", what=what)
    ids = (row for record in records.values() for part in record["splits"].values() for row in part)
    return Seen({name: r["data_hash"] for name, r in records.items()}, frozenset(ids))


def require_same_data(sources: Sources, recorded: dict[str, str], *, where: str) -> None:
    """Refuse sources whose rows are not those that an earlier stage saw."""
    for name, data_hash in recorded.items():
        if name not in sources:
            raise GradexError(f"{where}: knows the source '{name}', which --tasks no longer has")
        if sources[name].data_hash != data_hash:
            raise GradexError(
                f"{sources[name].path}: the rows of '{name}' are not those that {where} was made "
                "from; bring the file back, or start again from meta_train"
            )


def only_rows(sources: Sources, rows: Mapping[str, Sequence[str]], *, where: str) -> Sources:
    """The sources with these training rows (ids) alone; one that is not named keeps all."""
    kept = {}
    for name, ids in rows.items():
        wanted, there = set(ids), sources[name].rows["train"]
        chosen = tuple(row for row in there if row.id in wanted)
        gone = wanted.difference(row.id for row in chosen)
        if gone or not wanted:
            found = f"the row {min(gone)!r:.40}" if gone else "no row"
            raise GradexError(
                f"{where}: found {found} for '{name}' in `rows`, expected ids of its {len(there)} "
                "training rows; select again"
            )
        kept[name] = replace(sources[name], rows=sources[name].rows | {"train": chosen})
    return replace(sources, by_name={**sources.by_name, **kept})
