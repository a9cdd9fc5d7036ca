"""Tables of what `group` made: clusters of rows, and how well sources do together."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gradex.data.formats import Row
from gradex.data.sources import Sources
from gradex.reporting.csv_table import write_csv
from gradex.reporting.names import short
from gradex.selection.affinity import Affinity
from gradex.selection.row_clusters import Clusters

SAMPLES, LONGEST = 3, 80  # prompts that clusters.csv shows of each cluster, and their letters


def write_clusters(
    folder: Path, clusters: Sequence[Clusters], sources: Sources, of: dict[str, str]
) -> None:
    """group.csv: a line a row; clusters.csv: a line a cluster."""
    rows = ([row.id, name] for name in of for row in sources[name].rows["train"])
    write_csv(folder / "group.csv", ["row", "cluster"], rows)
    losses = [loss for found in clusters for loss in found.mean_loss.tolist()]
    lines = (
        [name, str(len(rows)), loss, *_samples(rows)]
        for name, loss in zip(of, losses, strict=True)
        for rows in [sources[name].rows["train"]]
    )
    header = ["cluster", "rows", "mean_loss", *(f"sample_{i + 1}" for i in range(SAMPLES))]
    write_csv(folder / "clusters.csv", header, lines)


def _samples(rows: Sequence[Row]) -> list[str]:
    """The first prompts, quoted: a spreadsheet is not to take one for a formula."""
    asked = [row.prompt[-1][1] if row.prompt else row.completion for row in rows[:SAMPLES]]
    texts = [json.dumps(short(text, LONGEST), ensure_ascii=False) for text in asked]
    return texts + [""] * (SAMPLES - len(texts))


def write_affinity(path: Path, found: Affinity) -> None:
    """One line a pair."""
    names = found.sources
    lines = (
        [names[i], names[j], found.together[i, j], found.distance[i, j]]
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
    )
    write_csv(path, ["source", "other", "together", "distance"], lines)
