"""The whole path on a toy world: contracts between the stages, determinism, resuming."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gradex import runs
from gradex.adapters import folder as adapters
from gradex.adapters.points import points_in
from gradex.arguments import DEMO_DEFAULTS
from gradex.cli import main as gradex
from gradex.config import RECORD_KEYS, main
from gradex.data.demo import write_world
from gradex.data.sources import load_sources
from gradex.data.tokens import collate
from gradex.data.true_runs import read_runs
from gradex.errors import GradexError
from gradex.estimate import Config as EstimateConfig
from gradex.estimate import estimate
from gradex.finetune import Config as FinetuneConfig
from gradex.finetune import finetune
from gradex.gradients.layers import trainable_slots
from gradex.gradients.projectors import make_projector
from gradex.gradients.store import GradientStore
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import early_steps, meta_train
from gradex.models.load import BaseSpec
from gradex.models.losses import sample_objectives
from gradex.pipeline import Config as PipelineConfig
from gradex.pipeline import pipeline
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.report import Config as ReportConfig
from gradex.report import report
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources
from gradex.selection.choice import Selection
from gradex.training.prepare import load_base_and_encoder
from gradex.training.trials import Trials
from gradex.verify import Config as VerifyConfig
from gradex.verify import verify

STEPS = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 5e-3}


def meta_config(model: Path, tasks: Path, **more) -> MetaConfig:
    return MetaConfig(model_name_or_path=str(model), tasks=[str(tasks)], **STEPS | more)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_path_from_sources_to_a_report(model_folder, toy_tasks):
    """Every stage picks up the newest run before it, and says where it wrote."""
    meta = meta_train(meta_config(model_folder("llama"), toy_tasks))
    assert (meta / "adapter/adapter_model.safetensors").exists()
    path = project(ProjectConfig(project_dim=20))
    store = GradientStore.open(path)
    assert store.sources == store.targets == ["copy", "noise_one", "noise_two", "upper"]
    table = estimate(EstimateConfig(num_subsets=6))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == [*"subset target value low high calibrated rank_low rank_high".split()]
    assert len(rows) == 6 * 4 and rows[0]["calibrated"] == "false" and rows[0]["low"] == ""
    assert len(list(Path("sampled_tasks").glob("*.txt"))) == 1
    chosen = select_sources(SelectConfig(target=["upper"]))
    selection = Selection.read(chosen)
    assert selection.target == "upper" and set(selection.selected) <= set(store.sources)
    tuned = finetune(FinetuneConfig())
    results = json.loads((tuned / "results.json").read_text())
    assert results["tuned"]["loss"] > 0 and results["recipe"]["max_steps"] == STEPS["max_steps"]
    truth = json.loads((verify(VerifyConfig(num_subsets=3)) / "verify.json").read_text())
    assert [t["n"] for t in truth["targets"]] == [3] * 4
    page = report(ReportConfig())
    assert "upper" in page.read_text()
    content = json.loads((page.parent / "report.json").read_text())
    assert [o["name"] for o in content["outcomes"]] == ["base model", "selection"]


def test_the_exported_adapter_is_a_plain_peft_folder(model_folder, toy_tasks):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    meta_train(meta_config(model_folder("llama"), toy_tasks))
    project(ProjectConfig(points=1, project_dim=20))
    select_sources(SelectConfig())
    folder = finetune(FinetuneConfig())
    base = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    model = PeftModel.from_pretrained(base, folder / "adapter")
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad(), model.disable_adapter():
        plain = model(ids).logits
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, plain)
    assert "LoRA" in (folder / "adapter/README.md").read_text()


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert"])
def test_the_other_families_go_the_same_way(model_folder, toy_tasks, tmp_path, kind):
    tasks = toy_tasks if kind != "bert" else _labelled(tmp_path / "labelled")
    meta_train(meta_config(model_folder(kind), tasks))
    project(ProjectConfig(points=1, project_dim=20))
    select_sources(SelectConfig())
    folder = finetune(FinetuneConfig())
    results = json.loads((folder / "results.json").read_text())
    assert np.isfinite(results["tuned"]["loss"])
    assert ("accuracy" in results["tuned"]) == (kind == "bert")


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_chain_of_thought_is_scored_by_its_answer(model_folder, tmp_path, kind):
    """In finetune and verify, for causal and encoder-decoder models alike."""
    folder = tmp_path / "thoughts"
    folder.mkdir()
    rows = [{"prompt": f"{i}+1?", "completion": f"{i} and 1. #### {i + 1}"} for i in range(40)]
    for name in ("plus", "other"):
        lines = [json.dumps(row | {"prompt": name + row["prompt"]}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        (folder / f"{name}.yaml").write_text(f"path: {name}.jsonl\nmetric: answer\n")
    meta_train(meta_config(model_folder(kind), folder))
    project(ProjectConfig(points=1, project_dim=20))
    select_sources(SelectConfig())
    results = json.loads((finetune(FinetuneConfig()) / "results.json").read_text())
    assert 0 <= results["tuned"]["answer"] <= 1
    run = verify(VerifyConfig(num_subsets=1))
    [trial] = [json.loads(file.read_text()) for file in run.glob("trials/*/result.json")]
    assert all("answer" in scores["test"] for scores in trial["scores"].values())


def test_half_precision_goes_the_same_way(model_folder, toy_tasks):
    meta_train(meta_config(model_folder("llama"), toy_tasks, bf16=True))
    store = GradientStore.open(project(ProjectConfig(points=1, project_dim=20)))
    assert store.space["model"].endswith("bfloat16")
    assert (store.source("copy").table["grad_norm"] > 0).all()


def _labelled(folder: Path) -> Path:
    folder.mkdir()
    for name in ("one", "two"):
        rows = [{"text": f"{name} {i}", "label": i % 3} for i in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.mark.parametrize("objective", ["loss", "margin"])
def test_stored_rows_equal_projected_single_sample_gradients(model_folder, toy_tasks, objective):
    """The store against the obvious way: batch-of-one autograd, projected by the same projector."""
    spec = BaseSpec(str(model_folder("llama")))
    meta = meta_train(meta_config(spec.path, toy_tasks))
    path = project(ProjectConfig(points=1, project_dim=30, dtype="float32", differentiate="both"))
    block = GradientStore.open(path).source("upper", objective=objective)
    sources = load_sources([str(toy_tasks)])
    base, encoder = load_base_and_encoder(spec, sources, max_length=512)
    model = adapters.load(base, meta / "adapter")
    projector = make_projector("sjlt", 30)
    for row, stored, entry in zip(
        sources["upper"].rows["train"], block.gradients, block.table, strict=True
    ):
        batch = collate([encoder.encode(row)], family="causal", pad_id=0)
        model.zero_grad()
        value = sample_objectives(model, batch, "causal")[0][objective].sum()
        value.backward()
        flat = torch.cat([slot.parameter.grad.flatten() for slot in trainable_slots(model)])
        wanted = projector.project(flat[None])[0].numpy()
        assert entry["id"].decode() == row.id
        assert np.linalg.norm(stored - wanted) / np.linalg.norm(wanted) < 1e-5
        assert abs(entry["grad_norm"] / float(flat.norm()) - 1) < 1e-4
        assert abs(entry[objective] - value.item()) < 1e-5


def test_two_runs_with_one_seed_leave_the_same_bytes(model_folder, toy_tasks, monkeypatch):
    made = []
    for name in ("one", "two"):
        Path(name).mkdir()
        monkeypatch.chdir(name)
        meta_train(meta_config(model_folder("llama"), toy_tasks))
        store = project(ProjectConfig(project_dim=20))
        choice = select_sources(SelectConfig())
        made.append((store.name, files_of(store), choice.read_bytes()))
        monkeypatch.chdir("..")
    assert made[0] == made[1]


def test_projecting_again_redoes_only_what_is_damaged(model_folder, toy_tasks):
    meta_train(meta_config(model_folder("llama"), toy_tasks))
    store = project(ProjectConfig(points=1, project_dim=20))
    before = files_of(store)
    damaged = store / "train/copy/shard-00000.npy"
    untouched = store / "train/upper/shard-00000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    stamp = untouched.stat().st_mtime_ns
    assert project(ProjectConfig(points=1, project_dim=20)) == store
    assert files_of(store) == before
    assert untouched.stat().st_mtime_ns == stamp


def test_an_interrupted_training_goes_on_to_the_same_adapter(model_folder, toy_tasks, monkeypatch):
    from gradex.training.module import FineTuner

    config = meta_config(model_folder("llama"), toy_tasks, lora_dropout=0.1, max_steps=20)
    whole = meta_train(config)
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == 13:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        meta_train(config)
    assert len(list(Path("runs/meta_train").glob("*.part"))) == 1
    monkeypatch.setattr(FineTuner, "training_step", step)
    resumed = meta_train(config)
    assert not list(Path("runs/meta_train").glob("*.part"))
    name = "adapter/adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert list(points_in(whole)) == [2, 6]
    assert files_of(resumed / "points") == files_of(whole / "points")
    curves = [json.loads((r / "curve.json").read_text())["loss"] for r in (whole, resumed)]
    assert curves[0] == curves[1] and len(curves[0]) == 20


def test_early_steps_are_a_tenth_and_three_tenths_as_far_as_there_are_steps():
    assert early_steps(1000) == [100, 300]
    assert [early_steps(n) for n in (1, 2, 4, 5)] == [[], [1], [1], [1, 2]]
    for n in range(1, 50):
        assert early_steps(n) == sorted(set(early_steps(n)) & set(range(1, n)))


def test_a_killed_projection_goes_on_to_the_same_store(model_folder, tmp_path):
    """kill -9 in the middle: the next run finishes what is missing, byte for byte."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(12):
        rows = [{"prompt": f"{i} {j}=", "completion": "abc" * 9} for j in range(60)]
        (folder / f"s{i:02d}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    meta_train(meta_config(model_folder("llama"), folder, max_steps=1))
    command = [sys.executable, "-m", "gradex.project", "--project_dim", "20", "--output_dir"]
    process = subprocess.Popen([*command, "killed"], stderr=subprocess.DEVNULL)
    while len(list(Path("killed").glob("train/*/*.json"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(Path("killed").glob("*/*/*.json")))
    assert done < 24, "the process was too quick to be killed"
    subprocess.run([*command, "killed"], check=True, capture_output=True)
    subprocess.run([*command, "whole"], check=True, capture_output=True)
    assert files_of(Path("killed")) == files_of(Path("whole"))


def test_verify_keeps_finished_fine_tunes(model_folder, toy_tasks, monkeypatch):
    meta_train(meta_config(model_folder("llama"), toy_tasks))
    project(ProjectConfig(points=1, project_dim=20))
    train, count = Trials._train, []

    def dying(self, *arguments):
        count.append(arguments)
        if len(count) == 3:
            raise KeyboardInterrupt
        return train(self, *arguments)

    monkeypatch.setattr(Trials, "_train", dying)
    with pytest.raises(KeyboardInterrupt):
        verify(VerifyConfig(num_subsets=4))
    verify(VerifyConfig(num_subsets=4))
    assert len(count) == 5  # two kept, the third begun again, and the fourth


def test_verify_goes_on_from_the_adapter_of_the_store(model_folder, toy_tasks):
    """With steps of next to no length every fine-tune ends at the losses that the store recorded;
    without the adapter, or with another one, there is nothing to go on from."""
    meta = meta_train(meta_config(model_folder("llama"), toy_tasks))
    store = GradientStore.open(project(ProjectConfig(points=1, project_dim=20)))
    meta_train(meta_config(model_folder("llama"), toy_tasks, seed=1))  # newer, not the store's
    still = VerifyConfig(num_subsets=1, start="meta", learning_rate=1e-12)
    run = verify(still)
    for entry in json.loads((run / "verify.json").read_text())["targets"]:
        recorded = float(store.target(entry["target"], "test").table["loss"].mean())
        assert [p["truth"] for p in entry["points"]] == pytest.approx([recorded], rel=1e-4)
    assert [r.subset for r in read_runs(run / "runs.json")[0]] == [
        frozenset(p["subset"]) for p in entry["points"]
    ]
    with pytest.raises(GradexError, match="lora_r: found 4, but --start meta"):
        verify(replace(still, lora_r=4))
    weights = load_file(meta / "adapter/adapter_model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, meta / "adapter/adapter_model.safetensors")
    with pytest.raises(GradexError, match=r"not the adapter .* --start base"):
        verify(still)
    for folder in runs.finished("meta_train"):
        shutil.rmtree(folder / "adapter")
    with pytest.raises(GradexError, match=r"no run of meta_train .* --start base"):
        verify(still)


def test_the_pipeline_does_not_repeat_finished_stages(model_folder, toy_tasks, monkeypatch):
    from gradex import pipeline as module

    config = PipelineConfig(
        model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], project_dim=20,
        num_subsets=4, verify_subsets=2, **STEPS,
    )  # fmt: skip

    def dying(config):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.verify, "verify", dying)
        with pytest.raises(KeyboardInterrupt):
            pipeline(config)
    page = pipeline(config)
    assert page.exists()
    assert len(runs.finished("meta_train")) == len(runs.finished("project")) == 1
    content = json.loads((page.parent / "report.json").read_text())
    assert [o["name"] for o in content["outcomes"]] == ["base model", "all sources", "selection"]


def test_the_pipeline_calibrates_on_anchors(model_folder, toy_tasks):
    """Whatever comes after the store goes by the anchors, and the report says how many."""
    page = pipeline(
        PipelineConfig(
            model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], project_dim=20,
            points=1, num_subsets=4, verify_subsets=2, anchors=4, **STEPS,
        )
    )  # fmt: skip
    (calibration,) = runs.finished("calibrate")
    for stage in ("estimate", "select_sources", "verify"):
        assert runs.read_config(runs.newest(stage), stage)["calibration"] == str(calibration)
    content = json.loads((page.parent / "report.json").read_text())
    assert content["verify"]["calibrated"] and content["verify"]["anchors"] == 4
    assert "calibrated on 4 other true fine-tunes, the anchors" in page.read_text()
    stages = [stage["stage"] for stage in content["stages"]]
    assert stages[:4] == ["meta_train", "project", "calibrate", "select_sources"]
    assert not (Path(content["verify"]["store"]) / "points").exists()


def test_the_pipeline_refuses_too_few_anchors_before_it_trains():
    with pytest.raises(GradexError, match="--anchors: found 3, a calibration needs at least 4"):
        PipelineConfig(anchors=3)


def test_every_stage_is_repeated_by_its_config(model_folder, toy_tasks):
    """`gradex RUN/config.yaml`, which the report prints, works for each of them."""
    meta_train(meta_config(model_folder("llama"), toy_tasks))
    project(ProjectConfig(points=1, project_dim=20))
    estimate(EstimateConfig(num_subsets=6))
    select_sources(SelectConfig())
    finetune(FinetuneConfig())
    verify(VerifyConfig(num_subsets=2))
    report(ReportConfig())
    for stage in ("project", "estimate", "select_sources", "finetune", "verify", "report"):
        assert gradex([str(runs.newest(stage) / "config.yaml")]) == 0, stage
        assert len(runs.finished(stage)) == 2


def test_a_target_of_its_own_file(model_folder, toy_tasks, tmp_path):
    rows = (toy_tasks / "upper.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "mine.jsonl").write_text("".join(rows[:30]))
    (toy_tasks / "upper.jsonl").write_text("".join(rows[30:]))
    target = [str(tmp_path / "mine.jsonl")]
    meta_train(meta_config(model_folder("llama"), toy_tasks, target=target))
    store = GradientStore.open(project(ProjectConfig(points=1, project_dim=20)))
    assert store.targets == ["mine"] and len(store.sources) == 4
    verify(VerifyConfig(num_subsets=2))
    select_sources(SelectConfig())
    (tmp_path / "mine.jsonl").write_text("".join(rows[:29]))
    with pytest.raises(GradexError, match="the rows of 'mine' are not those"):
        finetune(FinetuneConfig())


def test_one_adapter_with_other_targets_has_another_store(model_folder, toy_tasks):
    made = []
    for target in (["upper"], ["copy", "upper"]):
        meta_train(meta_config(model_folder("llama"), _with_held_out(toy_tasks), target=target))
        made.append(GradientStore.open(project(ProjectConfig(points=1, project_dim=20))))
    assert made[0].space == made[1].space and made[0].path != made[1].path
    assert [store.targets for store in made] == [["upper"], ["copy", "upper"]]
    with pytest.raises(GradexError, match="other tasks or another recipe"):
        project(ProjectConfig(points=1, project_dim=20, output_dir=str(made[0].path)))


def _with_held_out(tasks: Path) -> Path:
    """YAMLs whose select and test rows are files: the training rows do not depend on targets."""
    folder = tasks.parent / "yamls"
    folder.mkdir(exist_ok=True)
    for task in ("copy", "upper"):
        for number, split in enumerate(("select", "test")):
            rows = [{"prompt": f"{task}{split}{i}", "completion": "a"} for i in range(5 + number)]
            file = folder / f"{task}.{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{task}.yaml").write_text(
            f"path: {tasks}/{task}.jsonl\nselect: {task}.select.jsonl\ntest: {task}.test.jsonl\n"
        )
    return folder


def test_a_written_config_repeats_the_run(model_folder, toy_tasks):
    meta = meta_train(meta_config(model_folder("llama"), toy_tasks))
    assert main(meta_train, MetaConfig, ["--config", str(meta / "config.yaml")]) == 0
    again = runs.newest("meta_train")
    assert again != meta
    first, second = (yaml.safe_load((r / "config.yaml").read_text()) for r in (meta, again))
    for key in RECORD_KEYS:
        first.pop(key), second.pop(key)
    assert first == second
    name = "adapter/adapter_model.safetensors"
    assert (again / name).read_bytes() == (meta / name).read_bytes()


def test_a_store_of_another_adapter_is_refused(model_folder, toy_tasks):
    meta_train(meta_config(model_folder("llama"), toy_tasks))
    project(ProjectConfig(points=1, project_dim=20, output_dir="store"))
    meta_train(meta_config(model_folder("llama"), toy_tasks, seed=1))
    with pytest.raises(GradexError, match="the store was made with adapter="):
        project(ProjectConfig(points=1, project_dim=20, output_dir="store"))


def test_rows_that_changed_since_are_refused(model_folder, toy_tasks):
    meta_train(meta_config(model_folder("llama"), toy_tasks))
    project(ProjectConfig(points=1, project_dim=20))
    select_sources(SelectConfig())
    for file in toy_tasks.glob("*.jsonl"):
        file.write_text(file.read_text() + '{"prompt": "new", "completion": "row"}\n')
    for stage in (lambda: project(ProjectConfig()), lambda: finetune(FinetuneConfig())):
        with pytest.raises(GradexError, match="are not those that"):
            stage()


def test_trust_is_not_handed_on(model_folder, toy_tasks):
    meta = meta_train(meta_config(model_folder("llama"), toy_tasks, allow_pickle=True))
    store = GradientStore.open(project(ProjectConfig(points=1, project_dim=20)))
    assert yaml.safe_load((meta / "config.yaml").read_text())["allow_pickle"] is True
    handed_on = [*store.origin["base"], *store.origin["tasks"], *store.origin["recipe"]]
    assert "allow_pickle" not in handed_on and "trust_remote_code" not in handed_on


def test_the_demo_has_its_own_defaults():
    from gradex.meta_train import _resolved

    write_world(Path("world"))
    sources = load_sources(["world/tasks/demo"])
    assert _resolved(MetaConfig(), sources).max_steps == DEMO_DEFAULTS["max_steps"]
    epochs = _resolved(MetaConfig(num_train_epochs=1.0), sources)
    assert epochs.max_steps == -(-18 * 150 // 32)
    other = _resolved(MetaConfig(model_name_or_path="x", num_train_epochs=2.0), sources)
    assert other.max_steps == -(-2 * 18 * 150 // 8)


def test_rows_without_a_finite_gradient_fail_the_run_above_the_limit(model_folder, toy_tasks):
    meta = meta_train(meta_config(model_folder("llama"), toy_tasks))
    weights = load_file(meta / "adapter/adapter_model.safetensors")
    weights[min(weights)][0, 0] = torch.nan
    save_file(weights, meta / "adapter/adapter_model.safetensors")
    with pytest.raises(GradexError, match=r"160 of 160 rows have no finite gradient"):
        project(ProjectConfig(points=1, project_dim=8))
    store = GradientStore.open(project(ProjectConfig(points=1, project_dim=8, max_bad_rows=1.0)))
    receipt = store.receipts("train", "copy")[0]
    assert set(receipt["bad"].values()) == {"its loss is not finite"}


class Bar:
    """A progress bar that keeps what it is told."""

    def __init__(self, total: int):
        self.total, self.done, self.names = total, 0, []

    def update(self, amount: int) -> None:
        self.done += amount

    def set_postfix_str(self, name: str, refresh: bool) -> None:
        self.names.append(name)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_progress_is_counted_in_tokens_and_names_the_source(
    model_folder, toy_tasks, monkeypatch, num_workers
):
    meta_train(meta_config(model_folder("llama"), toy_tasks))
    bars = []

    @contextmanager
    def progress(name, total, *, unit):
        assert (name, unit) == ("gradients", "token")
        bars.append(Bar(total))
        yield bars[-1]

    monkeypatch.setattr("gradex.gradients.making.progress", progress)
    project(ProjectConfig(points=1, project_dim=8, num_workers=num_workers))
    sources = load_sources([str(toy_tasks)])
    _, encoder = load_base_and_encoder(
        BaseSpec(str(model_folder("llama"))), sources, max_length=512
    )
    rows = [r for source in sources.values() for part in source.rows.values() for r in part]
    tokens = sum(encoder.encode(row).length for row in rows)
    assert bars[0].done == bars[0].total == tokens
    assert set(bars[0].names) == set(sources)
