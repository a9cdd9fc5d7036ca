"""The stage reduce: a run's adapter, measured again, or any folder; what it refuses."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import skill_rows, write_jsonl
from safetensors.torch import load_file

from gradex.config import main
from gradex.errors import GradexError
from gradex.finetune import Config as FinetuneConfig
from gradex.finetune import finetune
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.reduce import Config, reduce
from gradex.report import Config as ReportConfig
from gradex.report import report
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources

NAMES = ("copy", "noise_one", "upper")


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder) -> Path:
    """A workspace with a fine-tune on a selection."""
    root, before = tmp_path_factory.mktemp("made"), Path.cwd()
    for number, name in enumerate(NAMES):
        rows = skill_rows(name.split("_")[0], 60, seed=number)
        write_jsonl(root / "tasks" / f"{name}.jsonl", rows)
    os.chdir(root)
    try:
        settings = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
        model = str(model_folder("llama"))
        meta_train(MetaConfig(model_name_or_path=model, tasks=["tasks"], **settings))
        project(ProjectConfig(project_dim=20, points=1))
        select_sources(SelectConfig(target=["upper", "copy"]))
        finetune(FinetuneConfig())
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def workspace(made) -> Path:
    """A copy of it that the test works in; returns the run of finetune."""
    shutil.copytree(made, ".", dirs_exist_ok=True)
    return next(Path("runs/finetune").iterdir())


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_without_flags_the_newest_fine_tune_is_reduced_and_measured(workspace):
    run, before = reduce(Config()), results_of(workspace)
    found = results_of(run)
    assert found["run"] == str(workspace) and found["adapter"] == str(workspace / "adapter")
    assert found["targets"].keys() == before["targets"].keys() == {"upper", "copy"}
    for name, measured in found["targets"].items():
        assert {k: measured[k] for k in ("base", "tuned")} == before["targets"][name]
        assert measured["reduced"]["loss"] != measured["tuned"]["loss"]
    assert found["reduced"] == found["targets"]["upper"]["reduced"]
    assert found["parameters_kept"] < found["parameters"]
    with open(run / "layers.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["layer"] for row in table] == [line["layer"] for line in found["layers"]]
    assert sum(int(row["parameters_kept"]) for row in table) == found["parameters_kept"]
    assert "this adapter" in (run / "adapter/README.md").read_text()


def test_where_all_is_kept_the_test_losses_are_those_of_the_fine_tune(workspace):
    run = reduce(Config(range_start=10))
    for measured in results_of(run)["targets"].values():
        assert measured["reduced"]["loss"] == pytest.approx(measured["tuned"]["loss"], abs=1e-6)
    name = "adapter/adapter_model.safetensors"
    before, after = load_file(workspace / name), load_file(run / name)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_measured_is_what_is_written(workspace, model_folder):
    """The loss of the run is that of the folder as peft loads it."""
    from gradex.adapters.folder import load
    from gradex.data.sources import load_sources
    from gradex.models.load import BaseSpec
    from gradex.training.prepare import load_base_and_encoder, test_scores

    run = reduce(Config())
    sources = load_sources(["tasks"])
    spec = BaseSpec(str(model_folder("llama")))
    base, encoder = load_base_and_encoder(spec, sources, max_length=512)
    scores = test_scores(load(base, run / "adapter"), sources, encoder, ["upper"])
    assert scores["upper"]["loss"] == pytest.approx(results_of(run)["reduced"]["loss"], abs=1e-6)


def test_a_bare_folder_is_reduced_alike_and_not_measured(workspace):
    shutil.copytree(workspace / "adapter", "bare")
    run = reduce(Config(adapter="bare"))
    found, of_run = results_of(run), results_of(reduce(Config(adapter=str(workspace))))
    assert found["layers"] == of_run["layers"]
    assert found["run"] is None and "reduced" not in found
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (max(Path("runs/reduce").iterdir()) / name).read_bytes()


def test_what_was_reduced_is_reduced_again(workspace):
    first = results_of(reduce(Config(output_dir="first")))
    again = results_of(reduce(Config(adapter="first", range_start=10)))
    assert [line["rank"] for line in again["layers"]] == [line["kept"] for line in first["layers"]]
    assert again["run"] is None


@pytest.mark.parametrize("flags", [{"search": "random"}, {"select_method": "random"}])
def test_what_is_random_is_the_seeds(workspace, flags):
    layers = [results_of(reduce(Config(**flags, seed=seed)))["layers"] for seed in (0, 0, 1)]
    assert layers[0] == layers[1] != layers[2]


def test_the_published_scale_is_said(workspace, caplog):
    caplog.set_level("INFO")
    run = reduce(Config(scale="authors"))
    assert "without alpha / rank" in caplog.text
    assert results_of(run)["scale"] == "authors"
    settings = json.loads((run / "adapter/adapter_config.json").read_text())
    assert settings["alpha_pattern"] == settings["rank_pattern"]


def test_a_run_is_repeated_by_its_config(workspace):
    first = reduce(Config(step=0.2))
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["adapter"] == str(workspace / "adapter")
    assert main(reduce, Config, ["--config", str(first / "config.yaml")]) == 0
    second = max(Path("runs/reduce").iterdir())
    assert results_of(second) == results_of(first)


def test_the_report_shows_it_beside_the_fine_tune(workspace):
    reduce(Config(step=0.5))
    run = reduce(Config())
    page = report(ReportConfig())
    content = json.loads((page.parent / "report.json").read_text())
    names = ["base model", "selection", "the selection, its adapter reduced"]
    assert [row["name"] for row in content["outcomes"]] == names
    assert content["outcomes"][-1]["loss"] == [results_of(run)["reduced"]["loss"]]
    assert str(run) in [stage["path"] for stage in content["stages"]]


def test_flags_that_cannot_be(workspace):
    for flags, says in (
        ({"step": 0.0}, "--step"),
        ({"step": 1.5}, "--step"),
        ({"range_start": 0}, "--range_start"),
        ({"search": "random", "select_method": "minor"}, "--select_method minor.*--search exact"),
    ):
        with pytest.raises(GradexError, match=says):
            Config(**flags)


def test_places_that_hold_no_adapter(workspace):
    Path("ensemble/adapters/1").mkdir(parents=True)
    Path("ensemble/ensemble.json").write_text("{}")
    for place, says in (
        ("gone", "gone: neither an adapter's folder nor a finished run"),
        ("tasks", "tasks: neither an adapter's folder nor a finished run"),
        ("ensemble", "ensemble: an ensemble mixes .* in ensemble/adapters: 1"),
    ):
        with pytest.raises(GradexError, match=says):
            reduce(Config(adapter=place))
    assert not Path("runs/reduce").exists()


DAMAGES = {
    "a target that is gone": (lambda r: r["targets"].update(gone={}), "unknown target 'gone'"),
    "no target": (lambda r: r["targets"].clear(), "unknown target 'upper'"),
    "no loss": (lambda r: r["targets"]["copy"].update(base={}), "copy: base: key 'loss'"),
    "no selection": (lambda r: r.pop("selected"), "key 'selected' is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_results_of_a_fine_tune_that_cannot_be(workspace, damage):
    change, says = DAMAGES[damage]
    results = results_of(workspace)
    change(results)
    (workspace / "results.json").write_text(json.dumps(results))
    with pytest.raises(GradexError, match=says):
        reduce(Config())
    assert not Path("runs/reduce").exists()


def test_a_base_that_is_another_is_refused(workspace, model_folder):
    config = Config(base=str(model_folder("gpt2")))
    with pytest.raises(GradexError, match="does not fit this base model"):
        reduce(config)
    shutil.copytree(workspace / "adapter", "bare")
    settings = json.loads(Path("bare/adapter_config.json").read_text())
    Path("bare/adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": None})
    )
    with pytest.raises(GradexError, match="--base"):
        reduce(replace(config, adapter="bare", base=None))
