"""Planted outliers, zero rows and duplicates are found, and ordinary rows are not."""

import json

import numpy as np
import pytest

from gradex.checks.integrity import Part
from gradex.checks.oddities import duplicates, outliers, summarise
from gradex.doctor import Config, doctor
from gradex.gradients.shards import ROW_TYPE, Faults, write_shard


def part(name="a", norms=(1.0, 1.0, 1.0), *, ids=None, hashes=None, side="train"):
    table = np.zeros(len(norms), ROW_TYPE)
    table["id"] = ids or [f"{name}{i}" for i in range(len(norms))]
    table["ok"], table["grad_norm"], table["loss"] = True, norms, 2
    own = hashes if hashes is not None else [hash((name, i)) % 2**63 for i in range(len(norms))]
    return Part(side, name, table, np.array(own, np.uint64), {}, {})


def ordinary(count: int, *, spread: float, seed: int = 0):
    return np.exp(spread * np.random.default_rng(seed).normal(size=count))


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_ordinary_rows_are_no_outliers(spread):
    assert outliers([part(norms=ordinary(2000, spread=spread))]) == []


@pytest.mark.parametrize("count", [9, 500])
def test_planted_outliers_are_named_worst_first(count):
    norms = ordinary(count, spread=0.3)
    norms[3], norms[7] = 100, 5000
    rows = [part("calm", np.ones(20)), part("wild", norms)]
    found = outliers(rows)
    assert [(one.source, one.row) for one in found] == [("wild", "wild7"), ("wild", "wild3")]
    assert found[0].times_median == pytest.approx(5000 / np.median(norms))
    assert [summarise(one).outliers for one in rows] == [0, 2]


def test_a_long_row_among_rows_of_all_lengths_is_none():
    """Ten times the median is nothing where lengths differ by more."""
    norms = ordinary(200, spread=1.5)
    norms[0] = 15 * np.median(norms)
    assert outliers([part(norms=norms)]) == []


def test_rows_that_are_not_good_do_not_count():
    rows = part(norms=[1.0] * 9 + [1e6])
    rows.table["ok"][9] = False
    assert outliers([rows]) == [] and summarise(rows).max_norm == 1
    assert (summarise(rows).rows, summarise(rows).good) == (10, 9)


def test_zero_rows_are_counted_and_do_not_hide_an_outlier():
    rows = part(norms=[0.0] * 6 + [1.0] * 5 + [50.0])
    assert summarise(rows).zero_rows == 6
    assert [one.row for one in outliers([rows])] == ["a11"]


def test_a_source_without_a_good_row_has_no_numbers():
    rows = part(norms=[1.0, 1.0])
    rows.table["ok"] = False
    summary = summarise(rows)
    assert summary.median_norm is summary.max_norm is summary.mean_loss is None
    assert outliers([rows]) == []


def test_rows_of_their_own_are_no_duplicates():
    found = duplicates([part("a"), part("b"), part("t", side="target")])
    counts = (found.within_a_source, found.in_several_sources, found.equal_gradients)
    assert counts == (0, 0, 0) and found.trained_on_and_in_a_target == 0


def test_one_row_twice_and_in_several_sources():
    a, b = part("a", ids=["x", "x", "y"]), part("b", ids=["y", "z", "w"])
    c, t = part("c", ids=["w", "y", "v"]), part("t", ids=["v", "w", "n"], side="target")
    found = duplicates([a, b, c, t])
    assert found.within_a_source == 1
    assert found.in_several_sources == 2 and found.shared_by == {"a + b + c": 1, "b + c": 1}
    assert found.trained_on_and_in_a_target == 2


def test_equal_gradients_of_different_rows_are_another_matter():
    a, b = part("a", hashes=[1, 2, 2]), part("b", ids=["b0", "b1", "a0"], hashes=[2, 9, 1])
    found = duplicates([a, b])
    assert found.equal_gradients == 3  # a0 in both sources is one row
    assert found.examples == [["a: a1", "a: a2", "b: b0"]]
    b.table["grad_norm"][0] = 0
    assert duplicates([a, b]).equal_gradients == 2


def test_a_store_without_rows_has_nothing_odd():
    assert duplicates([]).equal_gradients == 0 and outliers([]) == []


def test_doctor_says_them_and_is_content(tmp_path, make_store, caplog):
    gradients = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    gradients[4] = gradients[2]
    store = make_store(tmp_path / "s", {"a": gradients, "b": gradients[:3] + 1})
    store.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    with caplog.at_level("INFO"):
        file = doctor(Config(store=str(store.path)))
    assert "rows in several sources: 3 (a + b: 3)" in caplog.text
    assert "equal gradients, to the last bit: 4 (a: id2, a: id4, ...)" in caplog.text
    assert "in a target's select or test rows: 2" in caplog.text
    assert json.loads(file.read_text())["store"]["duplicates"]["shared_by"] == {"a + b": 3}


def test_doctor_names_outliers_zero_rows_and_bad_rows(tmp_path, make_store, table, caplog):
    array, rows = np.ones((9, 5), np.float32), table(9)
    store = make_store(tmp_path / "s", {"a": array}, shard_rows=9)
    array[5], rows["grad_norm"][5] = 90, 90
    array[6], rows["grad_norm"][6] = 0, 0
    rows["ok"][7:] = False
    faults = Faults({"id7": "no label"}, {"id8": "its loss is not finite"})
    (shard,) = store.shards("train", "a")
    write_shard(shard, {"": (array, rows)}, faults=faults, versions={})
    store.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    with caplog.at_level("INFO"):
        doctor(Config(store=str(store.path)))
    assert "rows that are outliers: 1 (norm over 10 times the median of its source" in caplog.text
    assert "  a, row id5: norm 90, 90 times the median" in caplog.text
    assert "rows with a gradient of 0: 1, of them 1 in a" in caplog.text
    assert "rows left out: 1 x no label" in caplog.text
    assert "rows that are bad: 1 x its loss is not finite" in caplog.text
