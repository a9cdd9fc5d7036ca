"""Estimates as CSV files: a line a subset and target, and a line a subset and target row."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradex.data.subsets import Subset, format_subset
from gradex.estimators.protocol import Estimates
from gradex.estimators.ranks import Ranks
from gradex.estimators.row_outcomes import RowOutcomes

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
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for row, subset in enumerate(subsets):
            words = format_subset(subset, sources)
            for column, target in enumerate(estimates.targets):
                sides = (estimates.value, estimates.low, estimates.high)
                numbers = [_cell(float(side[row, column])) for side in sides]
                ends = [_cell(float(side[row, column])) for side in ranks] if ranks else ["", ""]
                calibrated = str(estimates.calibrated).lower()
                table.writerow([words, target, *numbers, calibrated, *ends])


def write_row_outcomes(
    file: Path, found: Iterable[RowOutcomes], subsets: Sequence[Subset], sources: Sequence[str]
) -> None:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(ROW_COLUMNS)
        for one in found:
            for index, subset in enumerate(subsets):
                words = format_subset(subset, sources)
                margins = [math.nan] * len(one.ids) if one.margin is None else one.margin[index]
                for name, loss, margin in zip(one.ids, one.loss[index], margins, strict=True):
                    cells = [_cell(float(loss)), _cell(float(margin))]
                    table.writerow([words, one.target, name, *cells])


def _cell(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.6g}"
