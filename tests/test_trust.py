"""The stage: small steps are first-order in any store, runs go on, estimates are warned."""

import csv
import json
import logging
from pathlib import Path

import pytest

from gradex.errors import GradexError
from gradex.estimate import Config as EstimateConfig
from gradex.estimate import estimate
from gradex.estimators.displaced import MetaModel
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.trust import Config, trust

TARGETS = ["copy", "noise_one", "noise_two", "upper"]


@pytest.fixture
def trained(model_folder, toy_tasks) -> Path:
    """A meta-training on the toy world."""
    return meta_train(
        MetaConfig(
            model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], max_steps=6,
            per_device_train_batch_size=8, learning_rate=5e-3,
        )
    )  # fmt: skip


def measured(**flags) -> dict:
    return json.loads((trust(Config(**flags)) / "trust.json").read_text())


@pytest.mark.parametrize(
    "sketch", [{}, {"precondition": "adam"}, {"projector": "rademacher"}], ids=str
)
def test_small_steps_are_first_order(trained, sketch):
    """A lift that were no adjoint of the sketch would be wrong at any distance."""
    project(ProjectConfig(points=1, project_dim=20, dtype="float32", **sketch))
    found = measured(num_subsets=2, distances=[0.01, 1.0])
    assert [entry["target"] for entry in found["targets"]] == TARGETS
    assert found["errors"][0] < 0.05 < found["errors"][1]


def test_the_files_of_a_run(trained):
    store = project(ProjectConfig(points=1, project_dim=20))
    run = trust(Config(num_subsets=2, distances=[0.1, 0.01], target=["upper"]))
    found = json.loads((run / "trust.json").read_text())
    assert found["distances"] == [0.01, 0.1] and found["store"] == str(store)
    rows = list(csv.DictReader((run / "trust.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 and {row["target"] for row in rows} == {"upper"}
    near = [row for row in rows if row["distance"] == "0.01"]
    wrong = sum(abs(float(row["first_order"]) - float(row["real"])) for row in near)
    moved = sum(abs(float(row["real"])) for row in near)
    assert found["targets"][0]["errors"][0] == pytest.approx(wrong / moved, rel=1e-3)
    assert (run / "trust.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_goes_on_to_the_same_numbers(trained, monkeypatch):
    project(ProjectConfig(points=1, project_dim=20))
    flags = {"num_subsets": 3, "distances": [0.01]}
    whole = measured(**flags)
    losses, calls = MetaModel.losses, []

    def dying(self, displacement):
        calls.append(displacement)
        if len(calls) == 3:  # at rest, the first subset, and in the second
            raise KeyboardInterrupt
        return losses(self, displacement)

    monkeypatch.setattr(MetaModel, "losses", dying)
    with pytest.raises(KeyboardInterrupt):
        trust(Config(**flags))
    assert measured(**flags) == whole
    assert len(calls) == 3 + 3  # at rest, the second, and the third


def test_estimates_say_which_subsets_lie_outside(trained, caplog):
    project(ProjectConfig(points=1, project_dim=20))
    caplog.set_level(logging.WARNING)
    estimate(EstimateConfig(num_subsets=5))
    assert "lie farther" not in caplog.text
    run = trust(Config(num_subsets=2, distances=[1e-6]))
    estimate(EstimateConfig(num_subsets=5))
    assert "5 of 5 subsets lie farther from the meta adapter" in caplog.text
    assert str(run) in caplog.text


def test_a_real_forward_pass_is_an_estimator_too(trained):
    project(ProjectConfig(points=1, project_dim=20))
    table = estimate(EstimateConfig(num_subsets=2, estimator="shift"))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 2 * 4 and all(float(row["value"]) > 0 for row in rows)
    with pytest.raises(GradexError, match="--estimator shift: leads to no place"):
        trust(Config(estimator="shift"))


def test_a_store_without_its_meta_training_is_refused(trained):
    project(ProjectConfig(points=1, project_dim=20))
    trained.rename("elsewhere")
    with pytest.raises(GradexError, match="has the adapter that its gradients were taken at"):
        trust(Config())


def test_rows_that_changed_are_refused(trained, toy_tasks):
    project(ProjectConfig(points=1, project_dim=20))
    for file in toy_tasks.glob("*.jsonl"):
        file.write_text(file.read_text() + '{"prompt": "new", "completion": "row"}\n')
    with pytest.raises(GradexError, match="the rows of 'copy' are not those"):
        trust(Config())


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_distances_must_be_above_zero(wrong):
    with pytest.raises(GradexError, match="expected numbers above 0"):
        Config(distances=[0.1, wrong])
