"""Fine-tunes follow their selection: its rows, its shares, all its targets; and their mixer."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradex.adapters.kinds import KINDS
from gradex.data.sources import load_sources
from gradex.errors import GradexError
from gradex.finetune import Config, finetune
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.report import Config as ReportConfig
from gradex.report import report
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources
from gradex.selection import chosen
from gradex.selection.choice import Selection
from gradex.training.module import FineTuner
from tests.conftest import skill_rows, write_jsonl

NAMES = ["copy", "noise_one", "upper"]
MIXED = {"mixer": "pareto", "mix_every": 2, "mix_rows": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """A folder with a store, and a selection of all its sources for the target `upper`."""
    root, before = tmp_path_factory.mktemp("made"), Path.cwd()
    tasks = root / "tasks"
    for number, name in enumerate(NAMES):
        rows = skill_rows(name.split("_")[0], 60, seed=number)
        write_jsonl(tasks / f"{name}.jsonl", rows)
    os.chdir(root)
    try:
        settings = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
        model = str(model_folder("llama"))
        meta = meta_train(MetaConfig(model_name_or_path=model, tasks=[str(tasks)], **settings))
        store = project(ProjectConfig(meta_dir=str(meta), project_dim=20, points=1))
        every = SelectConfig(store=str(store.absolute()), method="all", target=["upper"])
        return tasks, Selection.read(select_sources(every))
    finally:
        os.chdir(before)


@pytest.fixture
def written(made):
    """written(**changes): a selection's file."""

    def write(**changes) -> str:
        return str(replace(made[1], **changes).write(Path("selection.json")))

    return write


@pytest.fixture
def trained_on(monkeypatch):
    """The ids of the rows that go into each training, batch by batch."""
    seen: list[list[str]] = []
    draw = FineTuner.on_before_batch_transfer

    def watched(self, number, place):
        seen.append([self.examples[i].row_id for i in self._draw(number)])
        return draw(self, number, place)

    monkeypatch.setattr(FineTuner, "on_before_batch_transfer", watched)
    return seen


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_the_rows_of_the_selection_alone_are_trained_on(made, written, trained_on):
    sources = load_sources([str(made[0])])
    ids = {name: [row.id for row in sources[name].rows["train"]] for name in NAMES}
    run = finetune(Config(selection=written(rows={"copy": ids["copy"][3:8]}), max_steps=20))
    drawn = {row for batch in trained_on for row in batch}
    assert drawn & set(ids["copy"]) == set(ids["copy"][3:8])
    assert drawn & set(ids["upper"]) and drawn & set(ids["noise_one"])
    assert results_of(run)["rows"] == {"copy": 5}


def test_epochs_are_counted_in_the_selections_rows(made, written):
    sources = load_sources([str(made[0])])
    ids = {name: [row.id for row in sources[name].rows["train"]][:8] for name in NAMES}
    run = finetune(Config(selection=written(rows=ids), num_train_epochs=1.0))
    assert results_of(run)["recipe"]["max_steps"] == 3


def test_batches_follow_the_shares_of_the_selection(made, written, trained_on):
    shares = {"copy": 0.75, "noise_one": 0.0, "upper": 0.25}
    run = finetune(Config(selection=written(weights=shares)))
    sources = load_sources([str(made[0])])
    for name, count in (("copy", 6), ("noise_one", 0), ("upper", 2)):
        own = {row.id for row in sources[name].rows["train"]}
        assert [sum(row in own for row in batch) for batch in trained_on] == [count] * 6
    assert results_of(run)["weights"] == results_of(run)["shares"] == shares
    card = (run / "adapter/README.md").read_text()
    assert "- `copy`: 75% of the training" in card and "- `upper`: 25% of" in card
    assert not (run / "shares.csv").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": {"copy": ["gone"]}}, "selection.json: found the row 'gone' for 'copy'"),
        ({"rows": {"copy": []}}, "selection.json: found no row for 'copy'"),
        ({"rows": {"copy": "abc"}}, "selection.json: found 'abc' for 'copy' in `rows`"),
        ({"weights": {"copy": 0.5, "upper": 0.5}}, "selection.json: .*no share of 'noise_one'"),
        ({"weights": dict.fromkeys(NAMES, 0.5)}, "selection.json: .*sum to 1.5, expected 1"),
    ],
)
def test_a_selection_that_cannot_be_followed(made, changes, says):
    content = vars(made[1]) | changes
    Path("selection.json").write_text(json.dumps(content))
    with pytest.raises(GradexError, match=says):
        finetune(Config(selection="selection.json"))
    assert not Path("runs").exists()


def test_every_target_of_the_selection_is_measured(written):
    results = results_of(finetune(Config(selection=written(targets={"upper": 2.0, "copy": 1.0}))))
    assert list(results["targets"]) == ["upper", "copy"]
    first = {"base": results["base"], "tuned": results["tuned"]}
    assert results["target"] == "upper" and results["targets"]["upper"] == first
    assert results["targets"]["copy"]["tuned"] != first["tuned"]


def shares_in(run: Path) -> list[dict[str, float]]:
    lines = csv.DictReader((run / "shares.csv").read_text().splitlines())
    return [{name: float(share) for name, share in line.items()} for line in lines]


def test_a_mixer_keeps_a_record_of_its_shares(written):
    run = finetune(Config(selection=written(), **MIXED))
    lines = shares_in(run)
    assert [line.pop("from_step") for line in lines] == [0, 2, 4]
    for line in lines:
        assert sum(line.values()) == pytest.approx(1, abs=1e-5) and min(line.values()) >= 0
    results = results_of(run)
    assert results["mixer"] == "pareto" and results["weights"] == {}
    for name in NAMES:
        mean = sum(line[name] for line in lines) / 3
        assert results["shares"][name] == pytest.approx(mean, abs=1e-5)
    assert (run / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_a_mixer_that_was_killed_ends_where_it_would_have(written, monkeypatch):
    config = Config(selection=written(), target="copy", **MIXED)
    whole = finetune(replace(config, output_dir="whole"))
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == 5:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            finetune(replace(config, output_dir="cut"))
    cut = finetune(replace(config, output_dir="cut"))
    for name in ("shares.csv", "results.json", "curve.json", "adapter/adapter_model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert list(results_of(cut)["targets"]) == ["upper", "copy"]  # the mixer's is measured too


@pytest.mark.parametrize("kind", ["milora", "pissa_niter", "loraga", "eva"])
def test_an_adapter_that_is_computed_is_written_once_and_gone_on_with(written, monkeypatch, kind):
    """A killed training ends as if it had not been, from the very beginning that it has saved."""
    calib_rows = 20 if KINDS[kind].reads_rows else None
    config = Config(selection=written(), adapter=kind, lora_r=4, calib_rows=calib_rows)
    whole = finetune(replace(config, save_init="whole_init", output_dir="whole"))
    step, cut = FineTuner.training_step, replace(config, save_init="init", output_dir="cut")

    def dying(self, batch, index):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            finetune(cut)
    stamps = {file: file.stat().st_mtime_ns for file in Path("init").rglob("*")}
    run = finetune(cut)
    for name in ("results.json", "curve.json", "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert {file: file.stat().st_mtime_ns for file in Path("init").rglob("*")} == stamps
    name = "adapter/adapter_model.safetensors"
    assert Path("init", name).read_bytes() == Path("whole_init", name).read_bytes()
    with pytest.raises(GradexError, match="--save_init init: exists already"):
        finetune(replace(cut, output_dir="other"))
    assert not Path("other.part").exists()


def test_the_beginning_of_a_meta_training_can_be_written(made, model_folder):
    settings = {"model_name_or_path": str(model_folder("llama")), "tasks": [str(made[0])]}
    config = MetaConfig(adapter="mid", lora_r=4, max_steps=1, save_init="init", **settings)
    meta_train(config)
    assert {file.name for file in Path("init").iterdir()} == {"model", "adapter"}


def test_the_mixers_target_may_be_without_labels(made, written, monkeypatch):
    """Whatever the completions of its select rows are, the shares are the same."""
    config = Config(selection=written(), target_unlabelled=True, **MIXED)
    found = shares_in(finetune(config))
    load = chosen.load_data

    def relabelled(settings):
        sources = load(settings)
        target = sources["upper"]
        other = [
            replace(r, messages=(*r.prompt, ("assistant", "?"))) for r in target.rows["select"]
        ]
        rows = target.rows | {"select": tuple(other)}
        return replace(sources, by_name={**sources, "upper": replace(target, rows=rows)})

    monkeypatch.setattr(chosen, "load_data", relabelled)
    monkeypatch.setattr(chosen, "require_same_data", lambda *a, **k: None)
    assert shares_in(finetune(config)) == found
    labelled = replace(config, target_unlabelled=False)
    assert shares_in(finetune(labelled)) != found


@pytest.mark.parametrize(
    "flags", [{"mix_every": 5}, {"mix_rows": 5}, {"target": "copy"}, {"target_unlabelled": True}]
)
def test_flags_of_a_mixer_that_is_not_there(flags):
    with pytest.raises(GradexError, match=f"--{next(iter(flags))}: .*--mixer pareto"):
        Config(**flags)


def test_a_mixer_needs_a_target_that_is_there(written):
    with pytest.raises(GradexError, match=r"--target: unknown target 'gone'"):
        finetune(Config(selection=written(), target="gone", **MIXED))


def test_the_report_tells_fine_tunes_of_other_shares_apart(made, written):
    shares = {"copy": 0.5, "noise_one": 0.0, "upper": 0.5}
    run = Path("runs/weigh/one")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("stage: weigh\ncreated: now\nseconds: 1.0\n")
    replace(made[1], weights=shares, method="weighed").write(run / "selection.json")
    finetune(Config(selection=written()))
    finetune(Config(selection=str(run)))
    finetune(Config(selection=str(run), **MIXED))
    page = report(ReportConfig(selection=str(run)))
    content = json.loads((page.parent / "report.json").read_text())
    names = ["base model", "all sources", "selection", "the selection, mixed while training"]
    assert [row["name"] for row in content["outcomes"]] == names
    assert content["selection"]["weights"] == shares
    assert "copy 50%" in page.read_text()


def test_batches_may_be_filled_with_tokens(written, trained_on):
    run = finetune(Config(selection=written(), tokens_per_batch=100))
    rows = [len(batch) for batch in trained_on]
    assert rows == [7] * 6  # of 13 or 14 tokens each
    recipe = results_of(run)["recipe"]
    assert recipe["tokens_per_batch"] == 100 and recipe["per_device_train_batch_size"] is None
    assert "| Batch | up to 100 padded tokens |" in (run / "adapter/README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"mixer": "pareto"}, "shares of a batch's rows"),
        ({"num_train_epochs": 1.0}, "how long its rows are; say --max_steps"),
        ({"per_device_train_batch_size": 4}, "leave the other out"),
    ],
)
def test_tokens_cannot_fill_batches(written, flags, says):
    with pytest.raises(GradexError, match=f"--tokens_per_batch: .*{says}"):
        finetune(Config(selection=written(), tokens_per_batch=100, **flags))


def test_shares_are_no_shares_of_tokens(written):
    chosen = written(weights={"copy": 0.5, "noise_one": 0.0, "upper": 0.5})
    with pytest.raises(GradexError, match=r"--tokens_per_batch: .*say --per_device"):
        finetune(Config(selection=chosen, tokens_per_batch=100))


def test_a_record_of_tokens_is_followed_unless_rows_are_asked_for(made, written):
    recipe = made[1].recipe | {"tokens_per_batch": 100, "per_device_train_batch_size": None}
    chosen = written(recipe=recipe)
    assert results_of(finetune(Config(selection=chosen)))["recipe"]["tokens_per_batch"] == 100
    by_rows = results_of(finetune(Config(selection=chosen, per_device_train_batch_size=4)))
    assert by_rows["recipe"]["tokens_per_batch"] is None


def test_training_may_end_early(written):
    config = Config(selection=written(), early_stopping=1, eval_every=1, learning_rate=0.5)
    run = finetune(replace(config, max_steps=30))
    results = results_of(run)
    assert results["kept_step"] < results["steps"] < 30
    lines = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    looks = [float(line["select_loss"]) for line in lines]
    assert len(looks) == results["steps"] and min(looks) == looks[results["kept_step"] - 1]
    assert f"this is step {results['kept_step']}" in (run / "adapter/README.md").read_text()


def test_what_a_mask_holds_stays_as_it_began(made, written):
    """Named as in the adapter's own file."""
    settings = {"selection": written(), "learning_rate": 1e-2, "weight_decay": 0.5}
    free = finetune(Config(**settings, save_init="begun"))
    begun = load_file(next(Path("begun").rglob("adapter_model.safetensors")))
    masks = {n: torch.zeros(t.shape, dtype=torch.bool) for n, t in begun.items() if "lora_A" in n}
    save_file(masks, "masks.safetensors")
    held = finetune(Config(**settings, mask="masks.safetensors"))
    free, held = (load_file(run / "adapter/adapter_model.safetensors") for run in (free, held))
    for name, tensor in begun.items():
        assert torch.equal(held[name], tensor) == (name in masks)
        assert not torch.equal(free[name], tensor)
