"""Sums over a source's rows: right, kept, made anew when the rows change or the file is damaged."""

import numpy as np
import pytest

from gradex.errors import GradexError
from gradex.gradients.shards import Faults, write_shard
from gradex.gradients.statistics import source_sums
from gradex.runs import locked


def unit_rows(g):
    return g.astype(np.float64)  # make_store writes norms of 1


@pytest.mark.parametrize("rows", [1, 3, 5, 9, 23])
def test_equal_to_the_plain_sums_on_either_side_of_dim(tmp_path, rows, make_store, gradients):
    g = gradients(rows)
    store = make_store(tmp_path / "s", {"a": g}, shard_rows=4)
    for found in (source_sums(store, "a"), source_sums(store, "a")):
        np.testing.assert_allclose(found.gram, unit_rows(g).T @ unit_rows(g), rtol=1e-12)
        np.testing.assert_allclose(found.total, unit_rows(g).sum(0), rtol=1e-12)
        assert found.count == rows and found.is_rows == (rows < 5)


def kept(store):
    return sorted((store.path / "stats").glob("*.npz"))


def test_two_that_sum_at_once_do_not_write_into_one_file(tmp_path, caplog, make_store, gradients):
    """Neither sees half of the other's; who comes second has its sums all the same."""
    g = gradients(6)
    store = make_store(tmp_path / "s", {"a": g})
    (store.path / "stats").mkdir()
    with locked(store.path / "stats"):
        np.testing.assert_allclose(source_sums(store, "a").total, g.sum(0), rtol=1e-6)
    assert not kept(store) and not caplog.text
    source_sums(store, "a")
    assert len(kept(store)) == 1


def test_a_second_reader_reads_no_shard(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(6)})
    first = source_sums(store, "a")
    assert len(kept(store)) == 1
    for shard in store.shards("train", "a"):
        shard.file(".npy").unlink()
    np.testing.assert_array_equal(source_sums(store, "a").gram, first.gram)


def test_other_rows_are_summed_anew(tmp_path, make_store, table, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    source_sums(store, "a")
    g = gradients(4, seed=9)
    shard = store.shards("train", "a")[0]
    write_shard(shard, {"": (g, table(4))}, faults=Faults({}, {}), versions={})
    np.testing.assert_allclose(source_sums(store, "a").total, g.sum(0), rtol=1e-6)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None])
def test_a_damaged_file_is_made_again(tmp_path, damage, make_store, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(6)})
    first = source_sums(store, "a")
    file = kept(store)[0]
    if damage is None:
        np.savez(file, total=np.zeros(5), count=6, matrix=np.zeros((2, 2)), is_rows=False)
    else:
        file.write_bytes(damage)
    np.testing.assert_array_equal(source_sums(store, "a").gram, first.gram)
    np.testing.assert_array_equal(np.load(file)["matrix"], first.matrix)


def test_a_source_without_a_good_row_is_named(tmp_path, make_store, table, gradients):
    store = make_store(tmp_path / "s", {"a": gradients(2)})
    rows = table(2)
    rows["ok"] = False
    shard = store.shards("train", "a")[0]
    write_shard(shard, {"": (gradients(2), rows)}, faults=Faults({}, {}), versions={})
    with pytest.raises(GradexError, match="'a' has no good row"):
        source_sums(store, "a")


def test_a_row_next_to_nothing_does_not_decide(tmp_path, make_store, gradients, table):
    """Its norm was lost in float32: over that, it would be longer than all others together."""
    store = make_store(tmp_path / "s", {"a": gradients(4)})
    g, rows = gradients(4), table(4)
    g[2], rows["grad_norm"][2] = 1e-23, 0
    shard = store.shards("train", "a")[0]
    write_shard(shard, {"": (g, rows)}, faults=Faults({}, {}), versions={})
    np.testing.assert_allclose(source_sums(store, "a").total, g[[0, 1, 3]].sum(0), rtol=1e-6)
