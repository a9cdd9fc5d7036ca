"""What runs of verify, transfer and trust found about a store, as the report keeps it."""

import csv
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.config import read_yaml
from gradex.data.true_runs import read_runs
from gradex.errors import GradexError
from gradex.estimators.calibration import RECORD
from gradex.records import read_json

SHAPE = {"store": str, "targets": list}
EFFECTS = ("effect", "low", "high", "hurts_share")


def newest_of(stage: str, store: str, *, target: str) -> Path | None:
    """The newest run of a stage that measured this target in this store."""
    for folder in reversed(runs.finished(stage)):
        found = _read(folder, stage)
        if found["store"] == store and target in (entry["target"] for entry in found["targets"]):
            return folder
    return None


def read_measured(stage: str, folder: Path, *, store: str) -> dict[str, Any]:
    """What a run of verify, transfer or trust found in this store."""
    found = _read(folder, stage)
    if found["store"] != store:
        raise GradexError(
            f"--{stage} {folder}: measured in {found['store']}, the selection was made from "
            f"{store}; name a run of that store, or leave the flag out"
        )
    more = {"verify": _anchors, "transfer": _effects}.get(stage)
    return found | more(folder, found) if more else found


def _read(folder: Path, stage: str) -> dict[str, Any]:
    return read_json(folder / f"{stage}.json", f"what a run of {stage} found", SHAPE)


def calibration_of(folder: Path) -> Path | None:
    """The run that this one's estimates were calibrated by, where it is still there."""
    place = Path(read_yaml(folder / "config.yaml").get("calibration") or "none")
    return place if (place / RECORD).is_file() else None


def _anchors(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """On how many true fine-tunes the estimates rest; None where that cannot be told."""
    place = calibration_of(folder) if found.get("calibrated") else None
    return {"anchors": len(read_runs(place / "runs.json")[0]) if place else None}


def _effects(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The table of effects as a matrix a column, a line a source and a number a target."""
    file = folder / "transfer.csv"
    with open(file, newline="", encoding="utf-8") as stream:
        cells = {(row["source"], row["target"]): row for row in csv.DictReader(stream)}
    targets = [entry["target"] for entry in found["targets"]]
    try:
        return {
            "effects": {
                key: [[_number(cells[s, t][key]) for t in targets] for s in found["sources"]]
                for key in EFFECTS
            }
        }
    except (KeyError, ValueError) as error:
        raise GradexError(
            f"{file}: not the effects that transfer.json tells of (found no {error}); run "
            "transfer again"
        ) from None


def _number(cell: str) -> float | None:
    return float(cell) if cell else None
