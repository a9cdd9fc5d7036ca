"""Stores at earlier points of a meta-training: each as a store of its own would be."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import skill_rows, write_jsonl
from safetensors.torch import load_file, save_file

from gradex import project as stage
from gradex.adapters import folder as adapters
from gradex.adapters.points import points_in
from gradex.errors import GradexError
from gradex.gradients import making, sketching
from gradex.gradients.store import GradientStore
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config, project

STEPS = [1, 3]
RICH = {"precondition": "adam", "differentiate": "both", "features": True, "dtype": "int8"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps_of(folder: Path) -> dict[str, int]:
    return {file: (folder / file).stat().st_mtime_ns for file in files_of(folder)}


@pytest.fixture(scope="module")
def world(model_folder, tmp_path_factory) -> SimpleNamespace:
    """Two sources, a meta-training of ten steps, and its store with all three points."""
    root = tmp_path_factory.mktemp("world")
    for number, name in enumerate(("copy", "upper")):
        write_jsonl(root / f"tasks/{name}.jsonl", skill_rows(name, 20, seed=number))
    with chdir(root):
        meta = meta_train(
            MetaConfig(
                model_name_or_path=str(model_folder("llama")), tasks=[str(root / "tasks")],
                max_steps=10, per_device_train_batch_size=4, learning_rate=5e-3,
                output_dir=str(root / "meta"),
            )
        )  # fmt: skip
        store = project(Config(meta_dir=str(meta), project_dim=8, output_dir=str(root / "whole")))
    return SimpleNamespace(meta=meta, whole=store, tasks=root / "tasks")


@pytest.fixture
def make(world):
    """make("s", points=2): project on the small world, into the folder s."""

    def run(name: str | None, *, meta=world.meta, **more) -> GradientStore:
        config = Config(meta_dir=str(meta), output_dir=name, **{"project_dim": 8} | more)
        return GradientStore.open(project(config))

    return run


def test_the_points_are_those_that_the_meta_training_kept(world):
    store = GradientStore.open(world.whole)
    assert list(points_in(world.meta)) == [int(p.path.name) for p in store.points()] == STEPS
    for point, adapter in zip(store.points(), points_in(world.meta).values(), strict=True):
        own = {key for key in store.space if point.space[key] != store.space[key]}
        assert own == {"adapter", "seed", "projection"} and point.points() == []
        assert point.space["adapter"] == adapters.fingerprint(adapter)
        assert point.space["seed"] == store.space["seed"] + int(point.path.name)


@pytest.mark.parametrize("flags", [{}, RICH], ids=["plain", "rich"])
def test_a_point_equals_the_store_of_a_training_that_ended_there(world, make, flags):
    """Byte for byte, with a projection of its own, and a preconditioner where there is one."""
    store = make("s", **flags)
    for step, adapter in points_in(world.meta).items():
        other = Path(f"meta{step}")
        shutil.copytree(world.meta, other, ignore=shutil.ignore_patterns("adapter", "points"))
        shutil.copytree(adapter, other / "adapter")
        direct = make(f"direct{step}", meta=other, points=1, seed=step, **flags)
        assert files_of(direct.path) == files_of(store.path / "points" / str(step))


def test_points_come_one_by_one_and_leave_the_rest_as_it_is(world, make):
    """The latest first; the store's name and its own files know nothing of them."""
    alone = make(None, points=1)
    assert not (alone.path / "points").exists()
    for points, steps in ((2, [3]), (3, [1, 3]), (1, [1, 3])):
        before = stamps_of(alone.path)
        again = make(None, points=points)
        assert again.path == alone.path and list(points_in(again.path)) == steps
        after = stamps_of(alone.path)
        written = ("origin.json", "plan.json")
        assert all(after[f] == before[f] for f in before if not f.endswith(written))
    assert files_of(alone.path) == files_of(world.whole)


def test_a_meta_training_that_kept_fewer_adapters_gives_fewer_points(world, make, caplog):
    old = shutil.copytree(world.meta, "old", ignore=shutil.ignore_patterns("points"))
    with caplog.at_level("INFO"):
        assert make("s", meta=old).points() == []
    assert "kept 0 adapters from before its end, so that the store has 1 of 3 points" in caplog.text


def test_a_model_is_loaded_once_a_point(make, monkeypatch):
    load, loaded = making.Ground.load, []

    def counted(self, index=0):
        loaded.append(self.adapter.name)
        return load(self, index)

    monkeypatch.setattr(making.Ground, "load", counted)
    make("s")
    assert loaded == ["adapter", "3", "1"]


def test_all_points_have_the_batches_that_the_first_one_settled_on(make, monkeypatch):
    """Free memory may be another by then."""
    budgets = iter([512, 64, 32])
    monkeypatch.setattr(sketching, "fitting_tokens", lambda *_, **more: next(budgets))
    store = make("s", tokens_per_batch="auto")
    assert [s.space["tokens_per_batch"] for s in (store, *store.points())] == [512] * 3


@pytest.mark.slow
def test_workers_leave_the_same_bytes(world, make):
    assert files_of(make("s", num_workers=2).path) == files_of(world.whole)


@pytest.mark.parametrize("points", [1, 3])
def test_what_is_damaged_in_a_point_is_made_again(world, make, points):
    """Whatever number is asked for: what is there is to be whole."""
    shutil.copytree(world.whole, "s")
    for file in ("points/1/train/copy/shard-00000.npy", "points/3/target/upper/shard-00000.json"):
        content = Path("s", file).read_bytes()
        Path("s", file).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(GradexError, match=r"points/3/target/upper/shard-00000\.json: "):
        GradientStore.open(Path("s")).points()
    make("s", points=points)
    assert files_of(Path("s")) == files_of(world.whole)


def test_a_point_whose_adapter_is_gone_or_another_is_refused(world, make):
    shutil.copytree(world.whole, "s")
    meta = shutil.copytree(world.meta, "meta")
    shutil.rmtree("meta/points/3")
    with pytest.raises(GradexError, match=r"s/points/3: meta has no adapter of this step .*has 1"):
        make("s", meta=meta)
    shutil.copytree("meta/points/1", "meta/points/3")
    with pytest.raises(GradexError, match=r"s/points/3: the store was made with adapter="):
        make("s", meta=meta)


def test_too_many_bad_rows_at_a_point_fail_the_run(world, make):
    meta = Path(shutil.copytree(world.meta, "meta"))
    file = meta / "points/1/adapter_model.safetensors"
    weights = load_file(file)
    weights[min(weights)][0, 0] = torch.nan
    save_file(weights, file)
    with pytest.raises(GradexError, match="40 of 40 rows have no finite gradient"):
        make("s", meta=meta)
    assert make("s", meta=meta, max_bad_rows=1.0).points()


@pytest.fixture
def more_rows(world):
    """Rows at the end of a file; it is put back as it was."""
    file = world.tasks / "copy.jsonl"
    before = file.read_text()
    more = [{"prompt": f"more {i}=", "completion": "abc"} for i in range(9)]
    file.write_text(before + "".join(json.dumps(row) + "\n" for row in more))
    yield
    file.write_text(before)


def test_appending_grows_every_point(world, make, more_rows):
    shutil.copytree(world.whole, "s")
    store = make("s", append=True, points=1)
    assert [int(point.path.name) for point in store.points()] == STEPS
    for point in store.points():
        for side, name in store.entries():
            ids = [s.table(side, name)["id"].tolist() for s in (store, point)]
            assert ids[0] == ids[1]
    assert sum(len(store.table(*entry)) for entry in store.entries()) == 49
    shutil.copytree(world.whole, "bare", ignore=shutil.ignore_patterns("points"))
    assert files_of(make("bare", append=True).path) == files_of(store.path)


def test_points_that_have_not_grown_yet_are_not_read(world, make, more_rows, monkeypatch):
    for name in ("s", "undisturbed"):
        shutil.copytree(world.whole, name)

    def stopping(order, ground, *, place, grown=None, title="gradients"):
        if title == "gradients at step 1":
            raise KeyboardInterrupt
        return making.make_store(order, ground, place=place, grown=grown, title=title)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "make_store", stopping)
        with pytest.raises(KeyboardInterrupt):
            make("s", append=True)
    with pytest.raises(GradexError, match="s/points/1: does not hold the rows of s yet; run proj"):
        GradientStore.open(Path("s")).points()
    make("s", append=True)
    make("undisturbed", append=True)
    assert files_of(Path("s")) == files_of(Path("undisturbed"))
