"""From anchors to calibrated stages: found by themselves, of the right store and recipe only."""

import csv
import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from conftest import skill_rows, write_jsonl

from gradex.arguments import EstimatorArguments
from gradex.calibrate import Config, calibrate
from gradex.data.true_runs import read_runs
from gradex.errors import GradexError
from gradex.estimate import Config as EstimateConfig
from gradex.estimate import estimate
from gradex.estimators import with_calibration
from gradex.gradients.store import GradientStore
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.records import read_json
from gradex.training.trials import Trials
from gradex.trust import Config as TrustConfig
from gradex.verify import Config as VerifyConfig
from gradex.verify import verify

STEPS = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
NAMES = ("copy", "noise_one", "noise_two", "upper")


@pytest.fixture(scope="module")
def world(model_folder, tmp_path_factory) -> Path:
    """Four sources, a store of two targets, and a calibration on four of the six pairs."""
    root = tmp_path_factory.mktemp("calibrated")
    for number, name in enumerate(NAMES):
        rows = skill_rows(name.split("_")[0], 30, seed=number)
        write_jsonl(root / f"toy/{name}.jsonl", rows)
    with chdir(root):
        meta_train(
            MetaConfig(
                model_name_or_path=str(model_folder("llama")), tasks=["toy"],
                target=["copy", "upper"], **STEPS,
            )
        )  # fmt: skip
        project(ProjectConfig(project_dim=16, points=2))
        calibrate(Config(anchors=4))
    return root


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    shutil.copytree(world, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def the_store() -> GradientStore:
    return GradientStore.open(next(Path("gradients").glob("*/manifest.json")).parent)


def the_run() -> Path:
    return next(Path("runs/calibrate").iterdir())


def test_a_calibration_holds_its_anchors_and_what_was_found(here):
    record = read_json(the_run() / "calibration.json", "a calibration")
    runs, recipe = read_runs(the_run() / "runs.json")
    assert record["fingerprint"] == the_store().fingerprint and record["start"] == "base"
    assert record["recipe"] == recipe and len({run.subset for run in runs}) == 4
    assert all(len(run.subset) == 2 for run in runs)
    assert set(record["left_out_r2"]) == {"copy", "upper"}
    assert all(set(run.scores["copy"]) == {"select", "test"} for run in runs)


def test_later_stages_find_it(here):
    rows = list(csv.DictReader(estimate(EstimateConfig(num_subsets=5)).read_text().splitlines()))
    assert {row["calibrated"] for row in rows} == {"true"}
    for row in rows:
        assert 0 < float(row["low"]) < float(row["value"]) < float(row["high"])
        assert row["rank_low"] == ""
    plain = estimate(EstimateConfig(num_subsets=5, calibration="none"))
    rows = list(csv.DictReader(plain.read_text().splitlines()))
    assert {row["calibrated"] for row in rows} == {"false"} and rows[0]["low"] == ""
    assert 1 <= float(rows[0]["rank_low"]) <= float(rows[0]["rank_high"]) <= 5


def test_nothing_that_was_calibrated_on_is_verified(here):
    folder = verify(VerifyConfig(num_subsets=4, subset_size=0.5))
    found, recipe = read_runs(folder / "runs.json")
    anchors, theirs = read_runs(the_run() / "runs.json")
    assert recipe == theirs
    assert len(found) == 2 and not {r.subset for r in found} & {r.subset for r in anchors}
    content = json.loads((folder / "verify.json").read_text())
    assert content["calibrated"]
    (first, *_) = content["targets"][0]["points"]
    assert first["low"] < first["estimate"] < first["high"]


def test_one_of_another_recipe_does_not_calibrate_these_runs(here):
    folder = verify(VerifyConfig(num_subsets=2, subset_size=0.5, max_steps=2))
    assert not json.loads((folder / "verify.json").read_text())["calibrated"]
    with pytest.raises(GradexError, match="fine-tuned in another way"):
        verify(VerifyConfig(num_subsets=2, max_steps=2, calibration=str(the_run())))


def test_one_of_another_store_is_not_taken(here):
    project(ProjectConfig(project_dim=8, points=1, output_dir="gradients/other"))
    other = GradientStore.open(Path("gradients/other"))
    assert with_calibration(EstimatorArguments(), other)[1] is None
    with pytest.raises(GradexError, match="another store"):
        with_calibration(EstimatorArguments(calibration=str(the_run())), other)


def test_of_several_the_newest_counts_and_only_baselines_stay_raw(here):
    fewer, _ = read_runs(the_run() / "runs.json")
    newest = calibrate(Config(anchors=5))
    said, found = with_calibration(EstimatorArguments(), the_store())
    assert said.calibration == str(newest) and len(found.anchors) == 5
    assert with_calibration(EstimatorArguments(estimator="cosine"), the_store())[1] is None
    # The first anchors of more are those of fewer.
    assert [run.subset for run in found.anchors[:4]] == [run.subset for run in fewer]


def test_an_interrupted_calibration_ends_as_if_it_had_not_been(here, monkeypatch):
    train, done = Trials._train, []

    def interrupted(self, subset, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(subset)
        return train(self, subset, *rest)

    whole, _ = read_runs(the_run() / "runs.json")
    monkeypatch.setattr(Trials, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(Config(anchors=4))
    counted = []
    monkeypatch.setattr(
        Trials, "_train", lambda self, subset, *rest: (
            counted.append(subset) or train(self, subset, *rest)
        )
    )  # fmt: skip
    again, _ = read_runs(calibrate(Config(anchors=4)) / "runs.json")
    assert again == whole and len(counted) == 2


def test_a_metric_needs_a_task_that_has_it(here):
    with pytest.raises(GradexError, match="no exact_match of 'copy'"):
        estimate(EstimateConfig(num_subsets=3, metric="exact_match"))


def test_too_few_and_too_many_anchors_are_refused(here):
    with pytest.raises(GradexError, match="needs at least 4"):
        calibrate(Config(anchors=3))
    with pytest.raises(GradexError, match="only 6 subsets of its 4 sources"):
        calibrate(Config(anchors=7))


def test_estimate_can_calibrate_for_itself(here):
    table = estimate(EstimateConfig(num_subsets=3, anchors=4))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["calibrated"] for row in rows} == {"true"}
    assert read_runs(table.parent / "runs.json") == read_runs(the_run() / "runs.json")
    with pytest.raises(GradexError, match="--anchors: found with --calibration"):
        EstimateConfig(anchors=4, calibration=str(the_run()))


def test_every_row_is_predicted_where_that_is_asked_for(here):
    table = estimate(EstimateConfig(num_subsets=2, per_row=True))
    rows = list(csv.DictReader((table.parent / "per_row.csv").read_text().splitlines()))
    store = the_store()
    wanted = {name: len(store.target(name, "select").table) for name in store.targets}
    assert len(rows) == 2 * sum(wanted.values())
    assert {row["margin"] for row in rows} == {""}
    with pytest.raises(GradexError, match="rows are predicted by linear and flow"):
        estimate(EstimateConfig(num_subsets=2, per_row=True, estimator="cosine"))


def test_the_start_is_part_of_the_recipe(here):
    base = the_run()
    meta = calibrate(Config(anchors=4, start="meta"))
    assert read_json(meta / "calibration.json", "a calibration")["start"] == "meta"
    for start, theirs in (("base", base), ("meta", meta)):
        folder = verify(VerifyConfig(num_subsets=2, subset_size=0.5, start=start))
        assert json.loads((folder / "verify.json").read_text())["calibrated"]
        assert read_runs(folder / "runs.json")[1] == read_runs(theirs / "runs.json")[1]


@pytest.mark.parametrize("make", [Config, TrustConfig])
def test_a_calibration_that_would_not_be_read_is_refused(make):
    with pytest.raises(GradexError, match="--calibration: found runs/calibrate/x"):
        make(calibration="runs/calibrate/x")
