"""Sources cut into clusters of their rows, each a source of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradex.data.sources import Source, Sources

DIGITS = 3


def cut(
    sources: Sources, clusters: Mapping[str, Sequence[Sequence[str]]]
) -> tuple[Sources, dict[str, str]]:
    """Sources in which some are in clusters, and which source each cluster came from.

    `clusters` has for each such source the ids of every cluster's rows; rows in none of them join
    the first. A source that is a target as well stays one under its name; all others stay as they
    are, as far as they are trained on or measured.
    """
    found: dict[str, Source] = {}
    of: dict[str, str] = {}
    for name, source in sources.items():
        if name in clusters:
            parts = _parts(source, clusters[name])
            found |= parts
            of |= dict.fromkeys(parts, name)
            source = _only(source, train=())
        kept = source if source.is_target else _only(source, select=(), test=())
        if any(kept.rows.values()):
            found[name] = kept
    return Sources(found), of


def _parts(source: Source, clusters: Sequence[Sequence[str]]) -> dict[str, Source]:
    """Cluster name -> its rows, in the order that they have in the source."""
    cluster_of = {row: number for number, ids in enumerate(clusters) for row in ids}
    rows: list[list] = [[] for _ in clusters]
    for row in source.rows["train"]:
        rows[cluster_of.get(row.id, 0)].append(row)
    digits = max(DIGITS, len(str(len(clusters) - 1)))
    names = [f"{source.name}/cluster-{number:0{digits}d}" for number in range(len(clusters))]
    return {
        name: _only(replace(source, name=name, bad={}), train=tuple(part), select=(), test=())
        for name, part in zip(names, rows, strict=True)
    }


def _only(source: Source, **rows: tuple) -> Source:
    return replace(source, rows=source.rows | rows)
