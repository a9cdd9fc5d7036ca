"""A store under other sources: every number bit for bit, at every point, whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradex.adapters.points import point_folder
from gradex.data.formats import Row
from gradex.data.sources import Source, Sources
from gradex.errors import GradexError
from gradex.gradients import regroup as module
from gradex.gradients.regroup import regroup
from gradex.gradients.shards import FEATURES, ROW_TYPE, Faults, quantise, read_receipt, write_shard
from gradex.gradients.store import GradientStore

DIM, SHARD_ROWS = 6, 4
ORIGIN = {"base": {}, "tasks": {}, "recipe": {}}


def rows(name: str, count: int) -> tuple[Row, ...]:
    return tuple(Row(f"{name}-{i}", (("assistant", "x"),)) for i in range(count))


def source(name: str, train=(), select=(), test=()) -> Source:
    parts = {"train": tuple(train), "select": tuple(select), "test": tuple(test)}
    return Source(name, name, "text", "loss", parts)


def named(*sources: Source) -> Sources:
    return Sources({one.name: one for one in sources})


OLD = named(
    # A row may be trained on and held out by two sources, and be in both splits of a target.
    source("a", rows("a", 11), rows("t", 3), rows("t", 6)),
    source("b/c", rows("a", 5)),
)
NEW = named(
    source("a/cluster-0", [OLD["a"].rows["train"][i] for i in (1, 2, 4, 7, 9, 10)]),
    source("a/cluster-1", [OLD["a"].rows["train"][i] for i in (0, 3, 5, 6, 8)]),
    source("a", (), OLD["a"].rows["select"], OLD["a"].rows["test"]),
    source("b/c", OLD["b/c"].rows["train"]),
)
OF = {"a/cluster-0": "a", "a/cluster-1": "a"}


def make(path: Path, *, seed: int = 0, dtype: str = "int8") -> GradientStore:
    space = {
        "project_dim": DIM, "differentiate": "both", "dtype": dtype, "precondition": "none",
        "features": "some", "adapter": str(seed),
    }  # fmt: skip
    store = GradientStore.create(
        path, space, origin=ORIGIN, shard_rows=SHARD_ROWS, slow_layers={"head": "why"}
    )
    rng = np.random.default_rng(seed)
    for one in OLD.values():
        sides = {"train": ["train"], "target": ["select", "test"] if one.is_target else []}
        for side, splits in sides.items():
            held = [(row.id, split) for split in splits for row in one.rows[split]]
            if held:
                fill(store, side, one, held, rng)
    store.save_plan()
    return GradientStore.open(path)


def fill(store, side, one, held, rng):
    shards = store.enter(side, one.name, rows=len(held), data_hash=one.data_hash)
    for shard in shards:
        part = held[shard.index * SHARD_ROWS : (shard.index + 1) * SHARD_ROWS]
        table = np.zeros(len(part), ROW_TYPE)
        table["id"], table["split"] = zip(*part, strict=True)
        table["loss"], table["ok"] = rng.random(len(part)), True
        parts = {}
        for ending in ("", ".margin"):
            stored, scale = quantise(rng.normal(size=(len(part), DIM)), store.space["dtype"])
            piece = table.copy()
            piece["scale"], piece["grad_norm"] = scale, rng.random(len(part))
            parts[ending] = (stored, piece)
        bad = {row: "not finite" for row, _ in part if row == "a-3"}
        left_out = {row: "too long" for row, _ in part if row == "a-9"}
        for ending in parts:
            parts[ending][1]["ok"] &= ~np.isin(table["id"], [b"a-3", b"a-9"])
        # A shard without a good row knows no width of its features.
        width = 3 if shard.index else 0
        parts[FEATURES] = (rng.normal(size=(len(part), width)).astype(np.float16),)
        write_shard(shard, parts, faults=Faults(left_out, bad), versions={"torch": "1"})


def read(store: GradientStore, side: str, name: str) -> dict:
    """(split, id) -> everything that is stored of the row, as bytes."""
    found = {}
    for shard in store.shards(side, name):
        table = np.load(shard.file(".rows.npy"))
        files = [shard.file(e) for e in (".npy", ".rows.npy", ".margin.npy", ".margin.rows.npy")]
        arrays = [np.load(file) for file in files]
        for i, row in enumerate(table):
            found[row["split"], row["id"]] = b"".join(array[i].tobytes() for array in arrays)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("at_once", [1, 2**28])
def test_every_row_is_there_once_bit_for_bit(tmp_path, monkeypatch, dtype, at_once):
    monkeypatch.setattr(module, "BYTES_AT_ONCE", at_once)
    old = make(tmp_path / "old", dtype=dtype)
    made = regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    assert made.sources == NEW.trainable and made.targets == old.targets == ["a"]
    whole = read(old, "train", "a")
    parts = [read(made, "train", name) for name in OF]
    assert parts[0] | parts[1] == whole and len(parts[0]) + len(parts[1]) == len(whole)
    for side, name in (("train", "b/c"), ("target", "a")):
        assert read(made, side, name) == read(old, side, name)
    ids = [row.id for row in NEW["a/cluster-0"].rows["train"] if row.id != "a-9"]
    assert made.source("a/cluster-0").table["id"].astype(str).tolist() == ids
    np.testing.assert_array_equal(made.rows(ids, source="a/cluster-0"), old.rows(ids, source="a"))
    assert made.space == old.space and made.data_hashes() == NEW.data_hashes()


def test_features_and_faults_stay_with_their_rows(tmp_path):
    old = make(tmp_path / "old")
    made = regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)

    def features(store, name):
        found = {}
        for shard in store.shards("train", name):
            kept = np.load(shard.file(".features.npy"))
            for row, feature in zip(np.load(shard.file(".rows.npy"))["id"], kept, strict=True):
                found[row] = feature.tolist() or [0.0] * 3
        return found

    assert features(made, "a/cluster-0") | features(made, "a/cluster-1") == features(old, "a")
    told = {
        name: [read_receipt(shard) for shard in made.shards("train", name)] for name in made.sources
    }
    assert [r["left_out"] for r in told["a/cluster-0"]] == [{}, {"a-9": "too long"}]
    assert [r["bad"] for r in told["a/cluster-1"]] == [{"a-3": "not finite"}, {}]
    assert all(r["versions"] == {"torch": "1"} for some in told.values() for r in some)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["slow_layers"] == {"head": "why"}


def test_points_are_regrouped_alike(tmp_path):
    old = make(tmp_path / "old")
    for step in (3, 20):
        make(point_folder(old.path, step), seed=step)
    made = regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    points = dict(zip((3, 20), made.points(), strict=True))
    for step, point in points.items():
        before = GradientStore.open(point_folder(old.path, step))
        assert point.space["adapter"] == str(step)
        for name in OF:
            kept = read(before, "train", "a")
            assert all(kept[key] == value for key, value in read(point, "train", name).items())


@pytest.mark.parametrize("shards_done", [0, 1, 6, 11])
def test_what_was_interrupted_is_not_there_and_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, shards_done
):
    old = make(tmp_path / "old")
    make(point_folder(old.path, 3), seed=3)
    whole = files_of(regroup(old, tmp_path / "whole", NEW, of=OF, origin=ORIGIN).path)
    done = []

    def dying(*arguments, **named):
        if len(done) == shards_done:
            raise KeyboardInterrupt
        done.append(write_shard(*arguments, **named))

    monkeypatch.setattr(module, "write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    assert not (tmp_path / "new").exists()
    counted = []
    monkeypatch.setattr(module, "write_shard", lambda *a, **n: counted.append(write_shard(*a, **n)))
    regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    assert files_of(tmp_path / "new") == whole and not (tmp_path / "new.part").exists()
    shards = [name for name in whole if name.endswith(".json") and "shard-" in name]
    assert len(counted) + shards_done == len(shards)


def test_a_store_that_is_there_is_left_as_it_is(tmp_path):
    old = make(tmp_path / "old")
    first = regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    stamps = {p: p.stat().st_mtime_ns for p in first.path.rglob("*")}
    regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    assert {p: p.stat().st_mtime_ns for p in first.path.rglob("*")} == stamps


def test_damage_is_not_copied_under_a_new_receipt(tmp_path):
    old = make(tmp_path / "old")
    file = old.shards("train", "a")[1].file(".npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(GradexError, match="its bytes are not those of its receipt"):
        regroup(old, tmp_path / "new", NEW, of=OF, origin=ORIGIN)
    assert not (tmp_path / "new").exists()
