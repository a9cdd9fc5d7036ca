"""The store: what is written is read back, what does not fit is refused, damage is noticed."""

import json

import numpy as np
import pytest

from gradex.errors import GradexError
from gradex.gradients.shards import ROW_TYPE, is_complete, quantise, rows_hash, write_shard
from gradex.gradients.store import GradientStore

SPACE = {"model": "m", "project_dim": 5, "differentiate": "loss", "dtype": "float32"}


def table(count: int, *, split: str = "train") -> np.ndarray:
    rows = np.zeros(count, ROW_TYPE)
    rows["id"] = [f"id{i}" for i in range(count)]
    rows["split"], rows["ok"], rows["scale"], rows["grad_norm"] = split, True, 1, 1
    return rows


def make_store(path, sources: dict[str, np.ndarray], *, shard_rows: int = 4, dtype="float32"):
    """A store that holds the given gradients, a source each, and a target `t`."""
    space = SPACE | {"dtype": dtype}
    store = GradientStore.create(path, space, origin={}, shard_rows=shard_rows)
    entries = [("train", name, gradients) for name, gradients in sources.items()]
    entries.append(("target", "t", np.ones((2, 5), np.float32)))
    for side, name, gradients in entries:
        rows = table(len(gradients), split="train" if side == "train" else "select")
        shards = store.enter(side, name, rows=len(rows), data_hash="h")
        for i, shard in enumerate(shards):
            part = slice(i * shard_rows, (i + 1) * shard_rows)
            stored, scale = quantise(gradients[part], dtype)
            piece = rows[part].copy()
            piece["scale"] = scale
            write_shard(shard, {"": (stored, piece)}, bad={}, versions={})
    store.save_plan()
    return GradientStore.open(path)


def gradients(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def test_round_trip_over_shards(tmp_path):
    g = gradients(10)
    store = make_store(tmp_path / "s", {"a/b c": g})
    np.testing.assert_array_equal(store.source("a/b c").gradients, g)
    assert store.sources == ["a/b c"] and store.targets == ["t"]
    assert (tmp_path / "s/train/a%2Fb%20c/shard-00002.npy").exists()


def test_plain_numpy_reads_a_shard(tmp_path):
    make_store(tmp_path / "s", {"a": gradients(3)})
    array = np.load(tmp_path / "s/train/a/shard-00000.npy", mmap_mode="r")
    np.testing.assert_array_equal(array, gradients(3))


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_half_floats_keep_rows_of_any_size(tmp_path, size):
    g = gradients(6) * np.float32(size)
    store = make_store(tmp_path / "s", {"a": g}, dtype="float16")
    error = np.abs(store.source("a").gradients - g).max() / np.abs(g).max()
    assert error < 2**-10


def test_rows_come_back_by_id_in_the_asked_order(tmp_path):
    g = gradients(7)
    store = make_store(tmp_path / "s", {"a": g})
    np.testing.assert_array_equal(store.rows(["id5", "id0"]), g[[5, 0]])
    with pytest.raises(GradexError, match="id9"):
        store.rows(["id9"])


def test_bad_rows_are_never_read(tmp_path):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    shard = store.shards("train", "a")[0]
    rows = table(4)
    rows["ok"][2] = False
    write_shard(shard, {"": (gradients(4), rows)}, bad={"id2": "no label"}, versions={})
    assert store.source("a").table["id"].tolist() == [b"id0", b"id1", b"id3"]


def test_a_store_of_another_space_is_refused_with_both_values(tmp_path):
    make_store(tmp_path / "s", {"a": gradients(2)})
    with pytest.raises(GradexError, match="model=m, this run has model=other"):
        GradientStore.create(tmp_path / "s", SPACE | {"model": "other"}, origin={}, shard_rows=4)


def test_an_unknown_source_prints_the_known(tmp_path):
    store = make_store(tmp_path / "s", {"a": gradients(2)})
    with pytest.raises(GradexError, match="unknown source 'b'; known are: a"):
        store.source("b")


def test_a_missing_receipt_is_named(tmp_path):
    store = make_store(tmp_path / "s", {"a": gradients(6)})
    store.shards("train", "a")[1].receipt.unlink()
    with pytest.raises(GradexError, match=r"shard-00001\.json: missing.*run project again"):
        store.source("a")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "receipt", "other rows"])
def test_damage_makes_a_shard_incomplete(tmp_path, damage):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    shard = store.shards("train", "a")[0]
    ids = [f"id{i}" for i in range(4)]
    assert is_complete(shard, rows_hash(ids, ["train"] * 4))
    file = shard.file(".npy")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-8])
    elif damage == "remove":
        shard.file(".rows.npy").unlink()
    elif damage == "receipt":
        shard.receipt.write_text(shard.receipt.read_text()[:20])
    else:
        ids = ids[::-1]
    assert not is_complete(shard, rows_hash(ids, ["train"] * 4))


def test_a_row_that_changes_sides_makes_a_shard_incomplete(tmp_path):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    shard, ids = store.shards("train", "a")[0], [f"id{i}" for i in range(4)]
    assert is_complete(shard, rows_hash(ids, ["train"] * 4))
    assert not is_complete(shard, rows_hash(ids, ["train"] * 3 + ["test"]))


def test_margin_gradients_are_asked_for_by_name(tmp_path):
    store = make_store(tmp_path / "s", {"a": gradients(2)})
    with pytest.raises(GradexError, match="--differentiate margin"):
        store.source("a", objective="margin")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(GradexError, match=r"no manifest\.json"):
        GradientStore.open(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/manifest.json").write_text(json.dumps({"format": "gradex-store/9"}))
    with pytest.raises(GradexError, match="gradex-store/9"):
        GradientStore.open(tmp_path / "x")
