"""What the report reads from runs of verify, transfer and trust."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from gradex import runs
from gradex.errors import GradexError
from gradex.records import write_json
from gradex.reporting.measured import EFFECTS, calibration_of, newest_of, read_measured

HEAD = ["source", "target", *EFFECTS]
LINES = [
    ["a", "t", 1, 0.5, 1.5, 0.9],
    ["a", "u", -1, "", "", 0.1],
    ["b", "t", 2, 1.5, 2.5, 1.0],
    ["b", "u", -2, "", "", 0.0],
]


@dataclass(frozen=True)
class Config:
    calibration: str = "none"


def finished(stage: str, *, store: str = "store", targets: str = "tu", **more) -> Path:
    """A run folder as far as the report looks into it."""
    calibration = more.pop("calibration", "none")
    with runs.start(stage, Config(calibration)) as run:
        entries = [{"target": name} for name in targets]
        write_json(run.part / f"{stage}.json", {"store": store, "targets": entries} | more)
    return run.path


def transferred(lines: list[list]) -> Path:
    folder = finished("transfer", sources=["a", "b"])
    with open(folder / "transfer.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEAD, *lines])
    return folder


def test_the_newest_run_of_the_store_and_target_is_found():
    assert newest_of("trust", "store", target="t") is None
    first = finished("trust")
    second = finished("trust", targets="u")
    finished("trust", store="other")
    assert newest_of("trust", "store", target="t") == first
    assert newest_of("trust", "store", target="u") == second
    assert newest_of("trust", "store", target="v") is None


def test_effects_become_matrices_whatever_the_order_of_the_lines():
    found = read_measured("transfer", transferred(LINES[::-1]), store="store")
    assert list(found["effects"]) == list(EFFECTS)
    assert found["effects"]["effect"] == [[1, -1], [2, -2]]
    assert found["effects"]["low"] == [[0.5, None], [1.5, None]]


@pytest.mark.parametrize("lines", [LINES[:-1], [["a", "t", "much", 0, 0, 0], *LINES[1:]]])
def test_a_table_of_other_effects_is_refused(lines):
    with pytest.raises(GradexError, match=r"transfer\.csv: not the effects"):
        read_measured("transfer", transferred(lines), store="store")


def test_a_run_of_another_store_is_refused():
    folder = finished("trust", store="other")
    with pytest.raises(GradexError, match=r"--trust .*: measured in other, .* made from store"):
        read_measured("trust", folder, store="store")


def anchored(count: int) -> Path:
    folder = finished("calibrate")
    write_json(folder / "calibration.json", {})
    run = {"subset": ["a"], "seed": 0, "scores": {}}
    write_json(folder / "runs.json", {"recipe": "r", "runs": [run] * count})
    return folder


def test_anchors_are_counted_where_the_calibration_still_is():
    place = anchored(5)
    folder = finished("verify", calibrated=True, calibration=str(place))
    assert calibration_of(folder) == place
    assert read_measured("verify", folder, store="store")["anchors"] == 5
    place.rename("elsewhere")
    assert read_measured("verify", folder, store="store")["anchors"] is None
    plain = finished("verify", calibrated=False)
    assert calibration_of(plain) is None
    assert read_measured("verify", plain, store="store")["anchors"] is None
