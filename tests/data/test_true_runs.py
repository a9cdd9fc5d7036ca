"""True fine-tunes in files: as they were written, of one recipe, or a sentence."""

import json

import pytest

from gradex.data.true_runs import TrueRun, read_all_runs, read_runs, write_runs
from gradex.errors import GradexError


def run_of(names: str, *, seed: int = 0) -> TrueRun:
    return TrueRun(frozenset(names), seed, {"t": {"test": {"loss": float(len(names))}}})


def test_runs_come_back(tmp_path):
    runs = [run_of("ab"), run_of("ab", seed=1), run_of("c")]
    write_runs(tmp_path / "runs.json", runs, recipe="r")
    assert read_runs(tmp_path / "runs.json") == (runs, "r")


def test_files_of_one_recipe_are_one_list_without_repetitions(tmp_path):
    write_runs(tmp_path / "1.json", [run_of("ab"), run_of("c")], recipe="r")
    write_runs(tmp_path / "2.json", [run_of("ba"), run_of("ab", seed=1)], recipe="r")
    files = [str(tmp_path / "1.json"), str(tmp_path / "2.json")]
    assert read_all_runs(files) == [run_of("ab"), run_of("c"), run_of("ab", seed=1)]
    assert read_all_runs([]) == []


def test_files_of_several_recipes_are_refused(tmp_path):
    for recipe in "rq":
        write_runs(tmp_path / f"{recipe}.json", [run_of("a")], recipe=recipe)
    files = [str(tmp_path / "r.json"), str(tmp_path / "q.json")]
    with pytest.raises(GradexError, match=r"fine-tunes of \S+r.json and \S+q.json differ in more"):
        read_all_runs(files)
    assert read_all_runs(files[:1], recipe="r") == [run_of("a")]
    with pytest.raises(GradexError, match=r"fine-tunes of this stage and \S+q.json differ in more"):
        read_all_runs(files[1:], recipe="r")


@pytest.mark.parametrize("content", [{"runs": []}, {"recipe": "r", "runs": [{"subset": ["a"]}]}])
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "runs.json"
    file.write_text(json.dumps(content))
    with pytest.raises(GradexError, match=r"runs\.json: .* as calibrate and verify write them"):
        read_runs(file)


def scored(loss: object) -> dict:
    return {"t": {"select": {"loss": loss}}}


@pytest.mark.parametrize(
    "damage",
    [
        {"subset": []},
        {"subset": [["a"]]},
        {"subset": [1]},
        {"scores": {"t": []}},
        {"scores": {"t": {"select": [1.0]}}},
        *({"scores": scored(loss)} for loss in ("1", None, True, [1.0], -1.0, float("nan"))),
        {"scores": scored(float("inf"))},
    ],
)
def test_damaged_runs_are_refused(tmp_path, damage):
    """Each would be an error far from here, or numbers that mean nothing."""
    file = tmp_path / "runs.json"
    record = {"subset": ["a"], "seed": 0, "scores": scored(1.0)}
    file.write_text(json.dumps({"recipe": "r", "runs": [record]}))
    assert read_runs(file)[0] == [TrueRun(frozenset("a"), 0, scored(1.0))]
    file.write_text(json.dumps({"recipe": "r", "runs": [record | damage]}))
    with pytest.raises(GradexError, match=r"runs\.json.*(expected results of|at least 0)"):
        read_runs(file)
