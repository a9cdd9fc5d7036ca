"""Which true fine-tunes the estimates of a store are calibrated on: those of a run of calibrate."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.data.true_runs import TrueRun, read_runs, write_runs
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.records import read_json, write_json

RECORD, RUNS = "calibration.json", "runs.json"
STAGES = ("calibrate", "estimate")  # estimate --anchors makes one of its own
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """The anchors of one run, and where they were trained from: the base or the meta adapter."""

    folder: Path
    start: str
    recipe: str
    anchors: list[TrueRun]


def write_calibration(
    calibration: Calibration, store: GradientStore, summary: dict[str, Any]
) -> None:
    """What makes a folder a calibration: its anchors, and what of; `summary` is for people."""
    write_runs(calibration.folder / RUNS, calibration.anchors, recipe=calibration.recipe)
    record = {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "start": calibration.start,
        "recipe": calibration.recipe,
    }
    write_json(calibration.folder / RECORD, record | summary)


def find_calibration(
    store: GradientStore, wanted: str, *, recipe: str | None = None
) -> Calibration | None:
    """`wanted` is a run's folder, "none", or "auto": the newest of this store, and of the recipe
    where one is given, if there is any."""
    if wanted == "none":
        return None
    if wanted != "auto":
        return _of_recipe(_read(Path(wanted), store), recipe)
    for folder in _newest_first():
        record = read_json(folder / RECORD, "a calibration", {"fingerprint": str, "recipe": str})
        if record["fingerprint"] == store.fingerprint and recipe in (None, record["recipe"]):
            return _read(folder, store)
    return None


def _of_recipe(found: Calibration, recipe: str | None) -> Calibration:
    if recipe in (None, found.recipe):
        return found
    raise GradexError(
        f"{found.folder}: its anchors were fine-tuned in another way (from the {found.start}) than "
        "these fine-tunes are; run calibrate with the same flags, or say --calibration none"
    )


def _newest_first() -> Iterator[Path]:
    folders = [f for stage in STAGES for f in runs.finished(stage) if (f / RECORD).is_file()]
    yield from sorted(folders, key=lambda folder: folder.name, reverse=True)


def _read(folder: Path, store: GradientStore) -> Calibration:
    shape = {"fingerprint": str, "start": str}
    record = read_json(folder / RECORD, "a calibration", shape)
    if record["fingerprint"] != store.fingerprint:
        raise GradexError(
            f"{folder}: calibrates estimates of another store than {store.path}; run calibrate for "
            "this one"
        )
    anchors, recipe = read_runs(folder / RUNS)
    return Calibration(folder, record["start"], recipe, anchors)
