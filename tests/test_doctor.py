"""The stage: a sound store and model end with 0, damage with 2, and doctor.json says the same."""

import json
import shutil
from pathlib import Path

import pytest

from gradex import doctor as module
from gradex import runs
from gradex.checks.subject import Subject
from gradex.cli import main as gradex
from gradex.doctor import Config, doctor
from gradex.errors import GradexError
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project


@pytest.fixture
def meta(model_folder, toy_tasks) -> Path:
    """A short meta-training."""
    model, tasks = str(model_folder("llama")), [str(toy_tasks)]
    return meta_train(MetaConfig(model_name_or_path=model, tasks=tasks, max_steps=2))


def test_a_store_from_sound_to_damaged_to_sound(meta, caplog, capsys):
    made = project(ProjectConfig(points=1, project_dim=20, differentiate="both"))
    with runs.locked(made), pytest.raises(GradexError, match="another process is writing here"):
        doctor(Config(store=str(made)))
    assert not runs.finished("doctor")

    with caplog.at_level("INFO"):
        file = doctor(Config())
    assert file == runs.newest("doctor") / "doctor.json"
    said = json.loads(file.read_text())["store"]
    assert said["path"] == str(made) and said["damage"] == said["left_over"] == []
    assert sum(one["rows"] for one in said["sources"]) == 160
    assert "no damage: every file is as its receipt says" in caplog.text
    assert f"{made}: " in caplog.text and "median norm" in caplog.text

    shard = made / "train/copy/shard-00000.margin.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert gradex(["doctor", "--store", str(made)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"gradex: error: {made}: 1 fault, first {shard}: its bytes are not those"
    )
    assert "run project again" in error
    kept = json.loads((runs.newest("doctor") / "doctor.json").read_text())["store"]["damage"]
    assert [fault["what"] for fault in kept] == [f"{shard}: its bytes are not those of its receipt"]

    project(ProjectConfig(points=1, project_dim=20, differentiate="both"))
    assert gradex([str(file.parent / "config.yaml")]) == 0


def test_the_points_of_a_store_are_looked_at_as_well(meta, caplog, capsys):
    made = project(ProjectConfig(project_dim=8))
    with caplog.at_level("INFO"):
        doctor(Config())
    assert f"{made}/points/1: " in caplog.text and caplog.text.count("no damage: every file") == 2
    assert _points_said()[0]["path"] == f"{made}/points/1" and not _points_said()[0]["damage"]

    shard = made / "points/1/target/copy/shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert gradex(["doctor"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"gradex: error: {made}/points/1: 1 fault, first {shard}: its bytes")
    assert len(_points_said()[0]["damage"]) == 1
    project(ProjectConfig(project_dim=8))
    assert gradex(["doctor"]) == 0

    with runs.locked(made / "points/1"), pytest.raises(GradexError, match="another process is wri"):
        doctor(Config())
    (made / "points/1/manifest.json").write_text("{")
    assert gradex(["doctor"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1/manifest.json: not valid JSON" in error
    assert f"remove {made}/points/1, then run project again" in error
    shutil.rmtree(made / "points/1")
    project(ProjectConfig(project_dim=8))
    assert gradex(["doctor"]) == 0


def _points_said() -> list[dict]:
    content = json.loads((runs.newest("doctor") / "doctor.json").read_text())
    return content["store"]["points"]


def test_a_meta_training_is_sound(meta, caplog):
    with caplog.at_level("INFO"):
        file = doctor(Config(meta_dir=str(meta), num_rows=2))
    content = json.loads(file.read_text())
    assert "store" not in content and len(content["model"]["lengths"]) == 2
    assert content["model"]["own"] == {"dtype": "float32", "attention": "sdpa", "padding": "right"}
    assert "a row is the same in every batch that gradex makes" in caplog.text
    assert content["model"]["said"][0] in caplog.text


def test_a_model_that_mixes_its_rows_ends_with_2(model_folder, toy_tasks, monkeypatch, capsys):
    load = Subject.load

    def mixing(self, dtype):
        model, encoder = load(self, dtype)
        norm = model.get_base_model().model.norm
        norm.register_forward_hook(lambda module, args, out: out - 0.1 * out.mean(0, keepdim=True))
        return model, encoder

    monkeypatch.setattr(Subject, "load", mixing)
    words = ["doctor", "--model", str(model_folder("llama")), "--tasks", str(toy_tasks)]
    assert gradex([*words, "--num_rows", "3"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the rows of a batch see one another" in error
    assert (runs.newest("doctor") / "doctor.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"adapter": "x"}, "--adapter: is for a model"),
        ({"bf16": True}, "--bf16: is for a model"),
        ({"meta_dir": "x", "model": "demo"}, "--meta_dir: has a model"),
        ({"num_rows": 0}, "--num_rows"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, says):
    with pytest.raises(GradexError, match=says):
        Config(**flags)


def test_infinity_is_no_json():
    assert module._plain({"a": [float("inf"), 1.5, "x"], "b": float("nan")}) == {
        "a": [None, 1.5, "x"], "b": None,
    }  # fmt: skip
