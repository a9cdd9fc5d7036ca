"""Estimates as CSV files: a line a subset and target, and a line a subset and target row."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gradex.data.subsets import Subset, format_subset
from gradex.estimators.protocol import Estimates
from gradex.estimators.ranks import Ranks
from gradex.estimators.row_outcomes import RowOutcomes
from gradex.reporting.csv_table import write_csv

COLUMNS = ("subset", "target", "value", "low", "high", "calibrated", "rank_low", "rank_high")
ROW_COLUMNS = ("subset", "target", "row", "loss", "margin")


def write_estimates(
    file: Path,
    estimates: Estimates,
    subsets: Sequence[Subset],
    sources: Sequence[str],
    *,
    ranks: tuple[Ranks, Ranks] | None = None,
) -> None:
    """An interval that is not there is left empty. Ranks are among these subsets; 1 is lowest."""
    sides = (estimates.value, estimates.low, estimates.high)
    nowhere = np.full_like(estimates.value, np.nan)
    ends = ranks or (nowhere, nowhere)
    calibrated = str(estimates.calibrated).lower()
    words = [format_subset(subset, sources) for subset in subsets]
    lines = (
        [
            words[row], target, *(side[row, column] for side in sides), calibrated,
            *(end[row, column] for end in ends),
        ]
        for row in range(len(subsets))
        for column, target in enumerate(estimates.targets)
    )  # fmt: skip
    write_csv(file, COLUMNS, lines)


def write_row_outcomes(
    file: Path, found: Iterable[RowOutcomes], subsets: Sequence[Subset], sources: Sequence[str]
) -> None:
    """A margin that is not there is left empty."""
    words = [format_subset(subset, sources) for subset in subsets]
    lines = (
        [words[index], one.target, name, loss, margin]
        for one in found
        for index in range(len(subsets))
        for name, loss, margin in zip(one.ids, one.loss[index], _margins(one, index), strict=True)
    )
    write_csv(file, ROW_COLUMNS, lines)


def _margins(one: RowOutcomes, index: int) -> Sequence[float]:
    return [math.nan] * len(one.ids) if one.margin is None else one.margin[index]
