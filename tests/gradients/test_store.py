"""The store: what is written is read back, what does not fit is refused, damage is noticed."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradex.errors import GradexError
from gradex.gradients.description import digest
from gradex.gradients.shards import (
    Faults,
    rows_hash,
    why_incomplete,
    write_shard,
)
from gradex.gradients.store import GradientStore
from gradex.records import read_sealed, write_sealed


def test_round_trip_over_shards(tmp_path, make_store, gradients):
    g = gradients(10)
    store = make_store(tmp_path / "s", {"a/b c": g})
    np.testing.assert_array_equal(store.source("a/b c").gradients, g)
    assert store.sources == ["a/b c"] and store.targets == ["t"]
    assert (tmp_path / "s/train/a%2Fb%20c/shard-00002.npy").exists()


def test_plain_numpy_reads_a_shard(tmp_path, make_store, gradients):
    make_store(tmp_path / "s", {"a": gradients(3)})
    array = np.load(tmp_path / "s/train/a/shard-00000.npy", mmap_mode="r")
    np.testing.assert_array_equal(array, gradients(3))


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("int8", 0.5 / 127)])
def test_short_numbers_keep_rows_of_any_size(tmp_path, size, dtype, step, make_store, gradients):
    g = gradients(6) * np.float32(size)
    store = make_store(tmp_path / "s", {"a": g}, dtype=dtype)
    error = np.abs(store.source("a").gradients - g).max(1) / np.abs(g).max(1)
    assert (error < 1.01 * step).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_zero_rows_come_back_as_zeros(tmp_path, dtype, make_store):
    g = np.zeros((3, 5), np.float32)
    store = make_store(tmp_path / "s", {"a": g}, dtype=dtype)
    np.testing.assert_array_equal(store.source("a").gradients, g)


def test_products_are_those_of_the_rows(tmp_path, make_store, gradients):
    g, directions = gradients(10), np.eye(5, 3, dtype=np.float32)
    store = make_store(tmp_path / "s", {"a": g})
    np.testing.assert_array_equal(store.products("train", "a", directions), g @ directions)


def test_rows_of_one_source_where_two_hold_the_same(tmp_path, make_store, gradients):
    a, b = gradients(3), gradients(3, seed=1)
    store = make_store(tmp_path / "s", {"a": a, "b": b})
    np.testing.assert_array_equal(store.rows(["id2"], source="a"), a[[2]])
    np.testing.assert_array_equal(store.rows(["id2"], source="b"), b[[2]])


def test_points_are_stores_of_the_same_rows_in_the_order_of_steps(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(3)})
    assert store.points() == []
    for step in (10, 9):
        make_store(tmp_path / f"s/points/{step}", {"a": gradients(3, seed=step)})
    (tmp_path / "s/points/8.part").mkdir()
    for step, point in zip((9, 10), store.points(), strict=True):
        np.testing.assert_array_equal(point.source("a").gradients, gradients(3, seed=step))
    make_store(tmp_path / "s/points/11", {"a": gradients(4)})
    with pytest.raises(
        GradexError, match=r"points/11: does not hold the rows of .*/s yet; run pro"
    ):
        store.points()


def test_a_point_of_another_model_is_refused(tmp_path, make_store, gradients):
    """It may well hold the same rows; an adapter and a projection of its own are usual."""
    store = make_store(tmp_path / "s", {"a": gradients(3)})
    file = make_store(tmp_path / "s/points/1", {"a": gradients(3)}).path / "manifest.json"
    store.space |= {"adapter": "a", "seed": 0}
    manifest = read_sealed(file, "a manifest")
    manifest["space"] |= {"adapter": "b", "precondition": "adam 1", "seed": 9}
    write_sealed(file, manifest)
    assert len(store.points()) == 1
    manifest["space"]["model"] = "other"
    write_sealed(file, manifest)
    with pytest.raises(GradexError, match=r"made with model=m, .*points/1 has model=other"):
        store.points()


def test_a_point_without_one_of_its_shards_is_refused(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(9)})
    point = make_store(tmp_path / "s/points/1", {"a": gradients(9)})
    point.shards("train", "a")[1].receipt.unlink()
    with pytest.raises(GradexError, match=r"points/1/.*00001\.json: missing.* run project again"):
        store.points()


def test_an_interrupted_creation_is_no_store_and_is_done_again(
    tmp_path, monkeypatch, make_store, gradients
):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            make_store(tmp_path / "s", {"a": gradients(3)})
    assert not GradientStore.exists(tmp_path / "s")
    assert make_store(tmp_path / "s", {"a": gradients(3)}).sources == ["a"]


def test_a_damaged_preconditioner_is_named(tmp_path, space):
    divisor = np.ones(7, np.float32)
    adam = space | {"precondition": f"adam {digest(divisor)}"}
    store = GradientStore.create(
        tmp_path / "s", adam, origin={}, shard_rows=4, precondition=divisor
    )
    np.testing.assert_array_equal(store.precondition, divisor)
    np.save(tmp_path / "s/precondition.npy", 2 * divisor)
    with pytest.raises(GradexError, match=r"precondition\.npy: not what the store was made with"):
        assert store.precondition is None
    (tmp_path / "s/precondition.npy").write_bytes(b"x")
    with pytest.raises(GradexError, match=r"precondition\.npy: cannot be read"):
        assert store.precondition is None


def test_rows_come_back_by_id_in_the_asked_order(tmp_path, make_store, gradients):
    g = gradients(7)
    store = make_store(tmp_path / "s", {"a": g})
    np.testing.assert_array_equal(store.rows(["id5", "id0"]), g[[5, 0]])
    with pytest.raises(GradexError, match="id9"):
        store.rows(["id9"])


def test_bad_rows_are_never_read(tmp_path, make_store, table, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    shard = store.shards("train", "a")[0]
    rows = table(4)
    rows["ok"][2] = False
    faults = Faults({}, {"id2": "its loss is not finite"})
    write_shard(shard, {"": (gradients(4), rows)}, faults=faults, versions={})
    assert store.source("a").table["id"].tolist() == [b"id0", b"id1", b"id3"]


def test_a_store_of_another_space_is_refused_with_both_values(
    tmp_path, make_store, gradients, space
):
    make_store(tmp_path / "s", {"a": gradients(2)})
    store = GradientStore.open(tmp_path / "s")
    with pytest.raises(GradexError, match="model=m, this run has model=other"):
        store.require_same_space(space | {"model": "other"}, other="this run")


def test_an_unknown_source_prints_the_known(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(2)})
    with pytest.raises(GradexError, match="unknown source 'b'; known are: a"):
        store.source("b")


def test_a_missing_receipt_is_named(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(6)})
    store.shards("train", "a")[1].receipt.unlink()
    with pytest.raises(GradexError, match=r"shard-00001\.json: missing.*run project again"):
        store.source("a")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("flip", "shard-00000.npy: its bytes are not those"),
        ("truncate", "shard-00000.npy: its bytes are not those"),
        ("remove", "shard-00000.rows.npy: missing"),
        ("receipt", "shard-00000.json: not valid JSON"),
        ("no receipt", "not there yet"),
        ("other rows", "shard-00000.json: of other rows"),
    ],
)
def test_damage_makes_a_shard_incomplete_and_is_named(
    tmp_path, damage, named, make_store, gradients
):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    shard = store.shards("train", "a")[0]
    ids = [f"id{i}" for i in range(4)]
    assert why_incomplete(shard, rows_hash(ids, ["train"] * 4)) is None
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
    elif damage == "no receipt":
        shard.receipt.unlink()
    else:
        ids = ids[::-1]
    assert named in why_incomplete(shard, rows_hash(ids, ["train"] * 4))


def test_a_row_that_changes_sides_makes_a_shard_incomplete(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    shard, ids = store.shards("train", "a")[0], [f"id{i}" for i in range(4)]
    assert why_incomplete(shard, rows_hash(ids, ["train"] * 4)) is None
    assert "of other rows" in why_incomplete(shard, rows_hash(ids, ["train"] * 3 + ["test"]))


def test_margin_gradients_are_asked_for_by_name(tmp_path, make_store, gradients):
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
