"""Sources cut into clusters: no row is lost, moved or doubled."""

import numpy as np
import pytest

from gradex.data.clusters import cut
from gradex.data.formats import to_row
from gradex.data.sources import Source, Sources


def rows(name: str, count: int) -> tuple:
    records = [{"prompt": f"{name}{i}", "completion": "x"} for i in range(count)]
    return tuple(to_row(record, "prompt_completion") for record in records)


def source(name: str, train: int, select: int = 0, test: int = 0) -> Source:
    found = rows(name, train + select + test)
    parts = {
        "train": found[:train],
        "select": found[train : train + select],
        "test": found[train + select :],
    }
    return Source(name, f"{name}.jsonl", "prompt_completion", "loss", parts)


@pytest.fixture
def sources() -> Sources:
    named = [source("a", 12, 2, 2), source("b", 5), source("only", 0, 3, 3), source("half", 4, 2)]
    return Sources({one.name: one for one in named})


def test_clusters_hold_the_rows_of_their_source_in_its_order(sources):
    ids = [row.id for row in sources["a"].rows["train"]]
    label = np.random.default_rng(0).integers(0, 3, 12)
    clusters = [[ids[i] for i in reversed(np.flatnonzero(label == k))] for k in range(3)]
    found, of = cut(sources, {"a": clusters})
    names = [f"a/cluster-00{k}" for k in range(3)]
    assert list(found) == [*names, "a", "b", "only", "half"] and of == dict.fromkeys(names, "a")
    for name, k in zip(names, range(3), strict=True):
        expected = [
            row for row, at in zip(sources["a"].rows["train"], label, strict=True) if at == k
        ]
        assert list(found[name].rows["train"]) == expected and not found[name].is_target
    assert found.trainable == [*names, "b", "half"]


def test_what_is_not_cut_stays_and_targets_keep_their_name(sources):
    found, _ = cut(sources, {"a": [[row.id for row in sources["a"].rows["train"]]]})
    assert found["b"] == sources["b"] and found["only"] == sources["only"]
    assert found["a"].rows == sources["a"].rows | {"train": ()}
    assert found.targets == sources.targets == ["a", "only"]
    assert found["half"].rows["select"] == (), "held out for a target that it is not"


def test_rows_in_no_cluster_join_the_first(sources):
    ids = [row.id for row in sources["b"].rows["train"]]
    found, _ = cut(sources, {"b": [ids[1:2], ids[2:4]]})
    first, second = (found[f"b/cluster-00{k}"].rows["train"] for k in (0, 1))
    assert [row.id for row in first] == [ids[0], ids[1], ids[4]]
    assert [row.id for row in second] == ids[2:4] and "b" not in found


def test_a_thousand_clusters_stand_in_their_order():
    many = source("m", 1001)
    _, of = cut(Sources({"m": many}), {"m": [[row.id] for row in many.rows["train"]]})
    assert sorted(of) == list(of) and list(of)[-1] == "m/cluster-1000"
