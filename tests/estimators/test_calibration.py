"""Which calibration is found: of this store and recipe alone, the newest, and whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from planted import store_of

from gradex.data.true_runs import TrueRun, write_runs
from gradex.errors import GradexError
from gradex.estimators.calibration import (
    RECORD,
    Calibration,
    find_calibration,
    write_calibration,
)

ANCHORS = [TrueRun(frozenset(pair), 0, {"t": {"select": {"loss": 1.0}}}) for pair in ("ab", "bc")]


def store_at(path: Path, **hashes: str):
    """A store of three sources; all stores of a test lie in one space."""
    rng = np.random.default_rng(0)
    sources = {name: rng.normal(size=(4, 3)) for name in "abc"}
    store = store_of(path, sources, {"t": rng.normal(size=(4, 3))})
    for name, data_hash in hashes.items():
        store.plan["target" if name == "t" else "train"][name]["data_hash"] = data_hash
    store.save_plan()
    return store


def calibrated(store, name: str, *, created: str, recipe: str = "r", stage: str = "calibrate"):
    """A finished run, as calibrate leaves it."""
    folder = Path("runs") / stage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": stage, "created": created}))
    write_calibration(Calibration(folder, "base", recipe, ANCHORS), store, {})
    return folder


def found(store, wanted: str = "auto", **more) -> Path | None:
    calibration = find_calibration(store, str(wanted), **more)
    return calibration and calibration.folder


def test_the_newest_is_found_whatever_folder_it_lies_in():
    store = store_at(Path("store"))
    calibrated(store, "zzz", created="2026-01-01")
    newest = calibrated(store, "mine", created="2026-03-01", stage="estimate")
    other = calibrated(store, "aaa", created="2026-02-01", recipe="q")
    assert found(store) == newest
    assert found(store, recipe="q") == other
    assert found(store, recipe="p") is None
    assert found(store, "none") is None


def test_other_rows_under_the_same_names_are_another_store():
    """Target rows are no part of a store's space."""
    store = store_at(Path("store"))
    folder = calibrated(store, "one", created="2026-01-01")
    assert found(store_at(Path("same"))) == folder
    for name in ("t", "b"):
        other = store_at(Path(name), **{name: "else"})
        assert other.fingerprint == store.fingerprint
        assert found(other) is None
        with pytest.raises(GradexError, match=f"another store .* other rows of '{name}'"):
            found(other, folder)


def test_a_source_that_came_later_leaves_a_calibration_as_it_is():
    store = store_at(Path("store"))
    folder = calibrated(store, "one", created="2026-01-01")
    store.enter("train", "later", rows=1, data_hash="new")
    store.save_plan()
    assert found(store) == found(store, folder) == folder


def test_anchors_of_sources_that_the_store_does_not_have_calibrate_nothing():
    """A store whose rows were put into clusters has the targets and the space of the first."""
    store = store_at(Path("store"))
    folder = calibrated(store, "one", created="2026-01-01")
    for name in "abc":
        store.plan["train"][f"{name}/cluster-000"] = store.plan["train"].pop(name)
    assert found(store) is None
    with pytest.raises(GradexError, match="its anchors hold the source 'a', which store does not"):
        found(store, folder)


@pytest.mark.parametrize("key", ["fingerprint", "data", "start", "recipe"])
@pytest.mark.parametrize("wanted", ["auto", "runs/calibrate/one"])
def test_a_damaged_calibration_is_refused(key, wanted):
    store = store_at(Path("store"))
    file = calibrated(store, "one", created="2026-01-01") / RECORD
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
    with pytest.raises(GradexError, match=f"key '{key}' is missing"):
        found(store, wanted)


@pytest.mark.parametrize("wanted", ["auto", "runs/calibrate/one"])
def test_fine_tunes_of_another_calibration_are_refused(wanted):
    store = store_at(Path("store"))
    folder = calibrated(store, "one", created="2026-01-01")
    write_runs(folder / "runs.json", ANCHORS, recipe="q")
    with pytest.raises(GradexError, match=r"not the fine-tunes that calibration\.json beside it"):
        found(store, wanted)
