"""Which true fine-tunes the estimates of a store are calibrated on: those of a run of calibrate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.data.true_runs import TrueRun, read_runs, write_runs
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.records import read_json, write_json

RECORD, RUNS = "calibration.json", "runs.json"
SHAPE = {"fingerprint": str, "data": dict, "start": str, "recipe": str}
STAGES = ("calibrate", "estimate")  # estimate --anchors makes one of its own


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
        "data": store.data_hashes(),
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
        record = read_json(folder / RECORD, "a calibration", SHAPE)
        if _difference(record, store) is None and recipe in (None, record["recipe"]):
            found = _whole(folder, record)
            if _foreign(found, store) is None:
                return found
    return None


def _of_recipe(found: Calibration, recipe: str | None) -> Calibration:
    if recipe in (None, found.recipe):
        return found
    raise GradexError(
        f"{found.folder}: its anchors were fine-tuned in another way (from the {found.start}) than "
        "these fine-tunes are; run calibrate with the same flags, or say --calibration none"
    )


def _newest_first() -> list[Path]:
    return [f for f in reversed(runs.finished(*STAGES)) if (f / RECORD).is_file()]


def _difference(record: dict[str, Any], store: GradientStore) -> str | None:
    """What of a store a calibration was not made for. Two stores may lie in one space, and hold
    other rows under the same names; a source that only one of them has is none of the anchors'."""
    if record["fingerprint"] != store.fingerprint:
        return "gradients"
    here = store.data_hashes()
    for name, data_hash in record["data"].items():
        if here.get(name, data_hash) != data_hash:
            return f"rows of '{name}'"
    return None


def _foreign(found: Calibration, store: GradientStore) -> str | None:
    """A source of the anchors that the store does not have: its rows may be in clusters."""
    names = frozenset().union(*(run.subset for run in found.anchors))
    return min(names.difference(store.sources), default=None)


def _read(folder: Path, store: GradientStore) -> Calibration:
    record = read_json(folder / RECORD, "a calibration", SHAPE)
    difference = _difference(record, store)
    if difference is not None:
        raise GradexError(
            f"{folder}: calibrates estimates of another store than {store.path}, with other "
            f"{difference}; run calibrate for this one"
        )
    found = _whole(folder, record)
    foreign = _foreign(found, store)
    if foreign is not None:
        raise GradexError(
            f"{folder}: its anchors hold the source '{foreign}', which {store.path} does not have; "
            "run calibrate for this one"
        )
    return found


def _whole(folder: Path, record: dict[str, Any]) -> Calibration:
    anchors, recipe = read_runs(folder / RUNS)
    if recipe != record["recipe"]:
        raise GradexError(
            f"{folder / RUNS}: not the fine-tunes that {RECORD} beside it was made with; run "
            "calibrate again"
        )
    return Calibration(folder, record["start"], recipe, anchors)
