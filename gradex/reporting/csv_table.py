"""Tables as CSV files: words as they are, numbers with six digits, nothing where there is none."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

Cell = str | float | None


def write_csv(file: Path, header: Sequence[str], lines: Iterable[Sequence[Cell]]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        table.writerows(map(_text, line) for line in lines)


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return "" if cell is None or math.isnan(cell) else f"{cell:.6g}"
