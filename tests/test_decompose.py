"""The stage decompose: follows the newest meta-training, keeps what it measured, refuses."""

import csv
import json
from pathlib import Path

import pytest

from gradex import runs
from gradex.adapters import covariance_cache
from gradex.checks.truncations import Study
from gradex.cli import main as gradex
from gradex.decompose import Config, decompose
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train

STEPS = {"max_steps": 2, "per_device_train_batch_size": 4}
SMALL = {"calib_rows": 8, "discard": [4, 12]}


@pytest.fixture
def of_model(model_folder, toy_tasks):
    def config(**more) -> Config:
        return Config(model=str(model_folder("llama")), tasks=[str(toy_tasks)], **SMALL | more)

    return config


def test_it_follows_the_newest_meta_training(model_folder, toy_tasks, monkeypatch):
    """Model, tasks, layers; and the covariances that the training's adapter began from."""
    meta = meta_train(
        MetaConfig(
            model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], lora_r=2,
            adapter="corda_kpa", calib_rows=8, lora_target_modules=["q_proj", "down_proj"], **STEPS,
        )
    )  # fmt: skip
    (file,) = Path("runs/covariances").iterdir()
    folder = decompose(Config())
    assert file in Path("runs/covariances").iterdir()
    assert len(list(Path("runs/covariances").iterdir())) == 2  # and those of the held-out rows
    content = json.loads((folder / "decompose.json").read_text())
    assert content["discards"] == [4, 8, 12, 16, 20, 24, 28] and content["components"] == 32
    assert content["targets"] == ["copy", "noise_one", "noise_two", "upper"]
    layers = {
        row["layer"] for row in csv.DictReader((folder / "layers.csv").read_text().splitlines())
    }
    assert len(layers) == 4 and {name.split(".")[-1] for name in layers} == {"q_proj", "down_proj"}
    assert (folder / "decompose.png").read_bytes().startswith(b"\x89PNG")
    assert runs.read_config(folder, "decompose")["meta_dir"] == str(meta)
    assert not (folder / "checkpoints").exists()
    monkeypatch.setattr(covariance_cache, "collect", None)
    assert gradex([str(folder / "config.yaml")]) == 0
    again = runs.newest("decompose")
    assert again != folder
    assert (again / "decompose.csv").read_bytes() == (folder / "decompose.csv").read_bytes()


def test_nothing_discarded_loses_nothing(of_model):
    content = json.loads((decompose(of_model(discard=[0])) / "decompose.json").read_text())
    for setting in content["settings"]:
        assert setting["targets"] == content["intact"]["targets"]
        assert set(setting["layers"].values()) == {0.0}


def test_an_interrupted_run_goes_on(of_model, monkeypatch):
    measure, count = Study._measure, []

    def dying(self, errors):
        count.append(errors)
        if len(count) == 4:
            raise KeyboardInterrupt
        return measure(self, errors)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_measure", dying)
        with pytest.raises(KeyboardInterrupt):
            decompose(of_model())
        folder = decompose(of_model())
    assert len(count) == 3 + 1 + (1 + 2 * 3 - 3)  # kept, interrupted, the rest
    assert len(list(folder.parent.iterdir())) == 1
    whole = decompose(of_model())
    for name in ("decompose.json", "layers.csv", "decompose.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


BAD = {
    "--metric foo": ["--metric", "unknown metric 'foo'", "context, activation, plain"],
    "--discard 17": ["--discard 17", "only 16 components"],
    "--discard -1": ["--discard", "-1", "at least 0"],
    "--target gone": ["--target", "'gone'", "copy, noise_one"],
    "--calib_source gone": ["--calib_source", "'gone'", "copy, noise_one"],
    "--calib_rows 0": ["--calib_rows", "above 0"],
    "--lora_target_modules gone": ["--lora_target_modules", "gone", "q_proj"],
    "--meta_dir x": ["--meta_dir", "--model"],
}


@pytest.mark.parametrize("flags", BAD)
def test_a_mistake_is_one_sentence(model_folder, toy_tasks, capsys, flags):
    base = ["--model", str(model_folder("llama")), "--tasks", str(toy_tasks)]
    assert gradex(["decompose", *base, *flags.split()]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(told) == 1 and all(part in told[0] for part in BAD[flags]), told
    assert not list(Path("runs").glob("decompose/*"))


def test_without_a_model_or_a_meta_training(capsys):
    assert gradex(["decompose"]) == 2
    assert "no finished run of meta_train" in capsys.readouterr().err
