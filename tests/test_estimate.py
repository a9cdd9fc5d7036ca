"""estimate with anchors of its own, and what it refuses before any fine-tune is done."""

import contextlib
import csv
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import skill_rows, write_jsonl

from gradex import runs
from gradex.cli import main
from gradex.data.true_runs import read_runs

NAMES = ("copy", "noise_one", "noise_two", "upper")
STEPS = ["--max_steps", "1", "--per_device_train_batch_size", "4"]


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory) -> Path:
    """A workspace with a store; tests take a copy."""
    root = tmp_path_factory.mktemp("made")
    for number, name in enumerate(NAMES):
        rows = skill_rows(name.split("_")[0], 40, seed=number)
        write_jsonl(root / f"tasks/{name}.jsonl", rows)
    model = str(model_folder("llama"))
    with contextlib.chdir(root):
        assert main(["meta_train", "--model_name_or_path", model, "--tasks", "tasks", *STEPS]) == 0
        assert main(["project", "--project_dim", "8", "--output_dir", "store"]) == 0
    return root


@pytest.fixture
def workspace(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def settings_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_anchors_of_its_own_make_the_estimates_losses(workspace):
    """With or without a calibration from before; later estimates find the newest."""
    for number in (1, 2):
        assert main(["estimate", "--anchors", "4", "--num_subsets", "5"]) == 0
        assert len(runs.finished("estimate")) == number
    first, second = runs.finished("estimate")
    rows = list(csv.DictReader((second / "estimates.csv").read_text().splitlines()))
    assert {row["calibrated"] for row in rows} == {"true"}
    assert len(read_runs(second / "runs.json")[0]) == 4
    assert main(["estimate", "--num_subsets", "5"]) == 0
    assert settings_of(runs.newest("estimate"))["calibration"] == str(second)
    assert main([str(first / "config.yaml")]) == 0
    assert (runs.newest("estimate") / "runs.json").read_text() == (first / "runs.json").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--per_row", "--estimator", "influence"], "--per_row: rows are predicted by linear"),
        (["--metric", "rouge"], "--metric: unknown metric 'rouge'; known are: loss, exact_match"),
    ],
)
def test_what_cannot_be_estimated_is_refused_before_any_fine_tune(
    workspace, monkeypatch, capsys, words, says
):
    def train(*_):
        raise AssertionError("trained for nothing")

    monkeypatch.setattr("gradex.training.trials.Trials._train", train)
    assert main(["estimate", "--anchors", "4", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(Path("runs/estimate").glob("*"))
