"""The stage weigh: its weights are those of the functions, and what it writes can be trained on."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from planted import store_of

from gradex.config import main
from gradex.errors import GradexError
from gradex.gradients.resampled_means import source_means, target_means
from gradex.selection.averaged_weights import averaged_weights
from gradex.selection.choice import Selection, selection_file
from gradex.selection.pareto import min_norm, unit_rows
from gradex.weigh import Config, weigh

DIM = 12
METHODS = pytest.mark.parametrize("method", ["match", "balance", "cosine"])


def around(direction, rows: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)) * 0.3 + direction


@pytest.fixture
def store():
    """Two targets, the source of each, one against each of them, and one of noise."""
    one, two = 2 * np.eye(DIM)[:2]
    sources = {
        "first": around(one, 40, seed=0),
        "second": around(two, 40, seed=1),
        "against/first": around(-one, 40, seed=2),
        "against second": around(-two, 40, seed=3),
        "noise": around(np.zeros(DIM), 40, seed=4),
    }
    targets = {"one": around(one, 20, seed=5), "two": around(two, 20, seed=6)}
    loss = {name: 1.0 + (name == "two") for name in [*sources, *targets]}
    made = store_of(Path("store"), sources, targets, loss=loss, shard_rows=64)
    made.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    return made


def config(**more) -> Config:
    return Config(store="store", **{"bootstrap": 10} | more)


def lines(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def read(folder: Path) -> dict:
    return json.loads((folder / "weigh.json").read_text())


@METHODS
@pytest.mark.parametrize("normalize", [False, True])
def test_the_table_is_what_the_functions_give(store, method, normalize):
    run = weigh(config(method=method, target=["two"], normalize=normalize, seed=3))
    draws = {"resamples": 10, "seed": 3}
    sources = source_means(store, store.sources, "unit", **draws)
    targets = target_means(store, ["two"], "unit", **draws)
    if normalize:
        sources, targets = unit_rows(sources), unit_rows(targets)
    found = averaged_weights(method, sources, targets)
    rows = lines(run / "weights.csv")
    assert [row["source"] for row in rows] == store.sources
    for key, numbers in (
        ("weight", found.weighing.weights),
        ("low", found.low),
        ("high", found.high),
        ("cosine", found.cosines),
        ("falls", found.weighing.falls),
        ("active", found.active),
    ):
        np.testing.assert_allclose([float(row[key]) for row in rows], numbers, rtol=1e-5)
    summary = read(run)
    assert summary["target_falls"] == pytest.approx(found.weighing.target_falls)
    assert summary["least_fall"] == pytest.approx(found.weighing.least_fall)
    assert summary["against"] == [
        store.sources[i]
        for i in np.argsort(found.weighing.falls)
        if found.weighing.falls[i] < 0
    ]  # fmt: skip


@METHODS
def test_the_targets_own_source_has_most_and_its_opposite_nothing(store, method):
    run = weigh(config(method=method, target=["two"]))
    selection = Selection.read(selection_file(str(run)))
    assert selection.selected[0] == "second" and "against second" not in selection.selected
    assert selection.method == f"weigh_{method}" and selection.targets == {"two": 1.0}
    assert list(selection.weights) == selection.selected
    assert sum(selection.weights.values()) == pytest.approx(1)
    assert list(selection.weights.values()) == sorted(selection.weights.values(), reverse=True)
    assert selection.base_value == 2 and not selection.calibrated and selection.n_sources == 5
    assert [step["added"] for step in selection.trace] == selection.selected


def test_the_value_is_the_change_by_a_step_to_first_order(store):
    run = weigh(config(target=["two"], bootstrap=0))
    selection = Selection.read(selection_file(str(run)))
    source, target = source_means(store, store.sources, "unit")[0], target_means(
        store, ["two"], "unit"
    )[0, 0]  # fmt: skip
    weights = np.array([float(row["weight"]) for row in lines(run / "weights.csv")])
    assert selection.value == pytest.approx(-float(weights @ source @ target), rel=1e-4)
    np.testing.assert_allclose(
        [selection.scores[name] for name in store.sources], -source @ target, rtol=1e-5
    )
    assert selection.scores["second"] < 0 < selection.scores["against second"]


def test_a_tail_of_small_shares_is_left_out(store):
    run = weigh(config(method="cosine", bootstrap=0))
    weights = {row["source"]: float(row["weight"]) for row in lines(run / "weights.csv")}
    selection = Selection.read(selection_file(str(run)))
    kept = sum(weights[name] for name in selection.selected)
    assert 0.95 <= kept <= 1 and kept - weights[selection.selected[-1]] < 0.95
    for name in selection.selected:
        assert selection.weights[name] == pytest.approx(weights[name] / kept, rel=1e-4)


def test_without_resamples_there_is_no_interval(store):
    rows = lines(weigh(config(bootstrap=0)) / "weights.csv")
    assert all(row["low"] == row["high"] == "" != row["weight"] for row in rows)


def test_several_targets_share_by_the_direction_that_serves_both(store, caplog):
    caplog.set_level(logging.INFO)
    run = weigh(config(target=["one", "two"]))
    selection = Selection.read(selection_file(str(run)))
    assert set(selection.selected[:2]) == {"first", "second"}
    assert sum(selection.targets.values()) == pytest.approx(1)
    for name, source in (("one", "first"), ("two", "second")):
        assert selection.targets[name] == pytest.approx(selection.weights[source], abs=0.1)
    assert selection.base_value == pytest.approx(1 + selection.targets["two"])
    assert "the targets' common ground is 0." in caplog.text
    assert read(run)["common_ground"]["targets"] == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_targets_that_pull_apart_are_warned_of(caplog):
    one, beside = 2 * np.eye(DIM)[0], np.eye(DIM)[1]
    targets = {"one": around(one, 20, seed=5), "not_one": around(-one, 20, seed=6)}
    sources = {"a": around(one + beside, 9, seed=7), "b": around(beside - one, 9, seed=8)}
    made = store_of(Path("store"), sources, targets, shard_rows=64)
    made.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    weigh(config(target=["one", "not_one"], method="minnorm"))
    (line,) = [r for r in caplog.records if "the targets' common ground" in r.message]
    assert line.levelno == logging.WARNING and "weights of its own" in line.message


def test_minnorm_tells_conflicts_and_gives_nothing_to_train_on(store, caplog):
    caplog.set_level(logging.INFO)
    run = weigh(config(method="minnorm"))
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml", "conflicts.csv", "weigh.json",
    ]  # fmt: skip
    pairs = lines(run / "conflicts.csv")
    worst = {frozenset((row["source"], row["other"])) for row in pairs[:2]}
    assert worst == {frozenset(("first", "against/first")), frozenset(("second", "against second"))}
    assert all(float(row["cosine"]) < 0 for row in pairs)
    summary = read(run)
    assert summary["conflicts"] == {"pairs": 10, "pull_apart": len(pairs), "listed": len(pairs)}
    assert summary["common_ground"]["sources"] < 0.5
    means = source_means(store, store.sources, "unit")[0].astype(float)
    np.testing.assert_allclose(
        list(summary["shortest_mixture"].values()), min_norm(means @ means.T), atol=1e-6
    )
    assert "pairs of sources pull apart, most of all" in caplog.text


@METHODS
def test_a_written_config_repeats_the_run(store, method):
    first = weigh(config(method=method, seed=4, row_norm="soft"))
    assert main(weigh, Config, ["--config", str(first / "config.yaml")]) == 0
    (second,) = set(Path("runs/weigh").iterdir()) - {first}
    assert yaml.safe_load((second / "config.yaml").read_text())["target"] == ["one"]
    for name in ("weights.csv", "conflicts.csv", "weigh.json", "selection.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_what_the_weights_do_is_said(store, caplog):
    caplog.set_level(logging.INFO)
    weigh(config(target=["one"]))
    assert "match for one: first 1.00; 1 of 5 sources have a share, 2." in caplog.text
    assert "sources, most of all against/first" in caplog.text


def test_a_target_that_every_source_works_against_is_warned_of(caplog):
    one = 2 * np.eye(DIM)[0]
    sources = {"a": around(-one, 30, seed=1), "b": around(-one, 30, seed=2)}
    store_of(Path("store"), sources, {"one": around(one, 9, seed=3)}).save_origin(
        {"base": {}, "tasks": {}, "recipe": {}}
    )
    weigh(config())
    assert "no weights were found that lower the targets' loss" in caplog.text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"target": ["three"]}, "unknown target 'three'; known are: one, two"),
        ({"target": ["one", "one"]}, "--target: found one one, expected each target once"),
    ],
)
def test_targets_that_are_not_there_are_refused(store, flags, says):
    with pytest.raises(GradexError, match=says):
        weigh(config(**flags))


def test_a_source_without_direction_is_named():
    sources = {"fine": around(np.ones(DIM), 5, seed=0), "flat": np.zeros((5, DIM))}
    store_of(Path("store"), sources, {"one": around(np.ones(DIM), 5, seed=1)})
    with pytest.raises(GradexError, match="the mean gradient of source 'flat' is zero"):
        weigh(config())
    assert list(Path("runs/weigh").iterdir()) == []


@pytest.mark.parametrize("flag", [{"bootstrap": -1}, {"seed": -1}])
def test_flags_out_of_range_are_refused(flag):
    with pytest.raises(GradexError, match=f"--{next(iter(flag))}: found"):
        Config(**flag)
