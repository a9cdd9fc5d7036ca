"""Every stage goes on with an adapter that is no plain LoRA, or refuses it by its name."""

import contextlib
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import skill_rows, write_jsonl

from gradex.calibrate import Config as CalibrateConfig
from gradex.calibrate import calibrate
from gradex.cli import main
from gradex.doctor import Config as DoctorConfig
from gradex.doctor import doctor
from gradex.errors import GradexError
from gradex.estimate import Config as EstimateConfig
from gradex.estimate import estimate
from gradex.finetune import Config as FinetuneConfig
from gradex.finetune import finetune
from gradex.group import Config as GroupConfig
from gradex.group import group
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources
from gradex.trust import Config as TrustConfig
from gradex.trust import trust
from gradex.verify import Config as VerifyConfig
from gradex.verify import verify

OFT = '{"oft_block_size": 4, "peft_type": "OFT", "r": 0}'
KINDS = {
    "milora": {"adapter": "milora", "lora_r": 4, "lora_alpha": 4.0},
    "full": {"adapter": "full"},
    "peft": {"peft_config": OFT},
}
STEPS = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """made(kind): a folder with a meta-training and its store, made once."""
    root = tmp_path_factory.mktemp("made")

    def make(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            folder.mkdir()
            with contextlib.chdir(folder):
                _begin(model_folder("llama"), **KINDS[kind])
        return folder

    return make


def _begin(model: Path, **adapter) -> None:
    for number, name in enumerate(("copy", "noise_one", "noise_two", "upper")):
        rows = skill_rows(name.split("_")[0], 20, seed=number)
        write_jsonl(Path(f"toy/{name}.jsonl"), rows)
    meta_train(MetaConfig(model_name_or_path=str(model), tasks=["toy"], **STEPS | adapter))
    project(ProjectConfig(project_dim=16, differentiate="both", points=1))


@pytest.fixture
def begun(made):
    """begun(kind): the same in the test's own folder."""
    return lambda kind: shutil.copytree(made(kind), ".", dirs_exist_ok=True)


def values(table: Path) -> np.ndarray:
    rows = csv.DictReader(table.read_text().splitlines())
    return np.array([float(row["value"]) for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_goes_on_with_it(begun, kind):
    begun(kind)
    assert np.isfinite(values(estimate(EstimateConfig(num_subsets=3)))).all()
    shifted = estimate(EstimateConfig(num_subsets=3, estimator="shift"))
    assert np.isfinite(values(shifted)).all()
    trust(TrustConfig(num_subsets=2, distances=[0.01, 0.1]))
    assert doctor(
        DoctorConfig(meta_dir=str(next(Path("runs/meta_train").iterdir())), num_rows=2)
    ).exists()
    verify(VerifyConfig(num_subsets=2, start="meta"))
    calibrate(CalibrateConfig(anchors=4, start="meta"))
    select_sources(SelectConfig())
    tuned = finetune(FinetuneConfig())
    recipe = json.loads((tuned / "results.json").read_text())["recipe"]
    assert recipe["adapter"] == kind
    assert recipe["peft_config"] == (OFT if kind == "peft" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_recipe_is_for_lora_and_its_starts(begun, kind):
    begun(kind)
    config = EstimateConfig(num_subsets=3, estimator="logistic", as_published=True)
    if kind == "milora":
        assert np.isfinite(values(estimate(config))).all()
        return
    with pytest.raises(GradexError, match="--as_published is made for the matrices of LoRA"):
        estimate(config)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_of_it(begun, kind):
    begun(kind)
    groups = group(GroupConfig(sources=True, num_groups=2))
    if kind == "full":
        with pytest.raises(GradexError, match="--adapter full: an ensemble has several adapters"):
            finetune(FinetuneConfig(ensemble=str(groups)))
        assert not list(Path("runs/finetune").glob("*/adapters"))
        return
    folder = finetune(FinetuneConfig(ensemble=str(groups)))
    results = json.loads((folder / "results.json").read_text())
    assert all(np.isfinite(target["base"]["loss"]) for target in results["targets"])


@pytest.mark.parametrize("kind", ["peft", "full"])
def test_a_run_is_repeated_from_its_config(model_folder, toy_tasks, kind):
    """To the same weights, whatever has become of the file that named the adapter."""
    adapter = dict(KINDS[kind])
    if kind == "peft":
        Path("oft.json").write_text(OFT)
        adapter = {"peft_config": "oft.json"}
    first = meta_train(
        MetaConfig(
            model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], **STEPS | adapter
        )
    )
    Path("oft.json").unlink(missing_ok=True)
    settings = yaml.safe_load((first / "config.yaml").read_text())
    assert settings["adapter"] == kind
    assert main([str(first / "config.yaml"), "--output_dir", "again"]) == 0
    for file in (first / "adapter").glob("*.safetensors"):
        assert file.read_bytes() == Path("again/adapter", file.name).read_bytes()
