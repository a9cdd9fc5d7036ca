"""The stage transfer: its tables are those of the functions, and nothing is left out unsaid."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from gradex.config import main
from gradex.data.subsets import membership
from gradex.errors import GradexError
from gradex.estimators.linear import Linear
from gradex.estimators.protocol import Estimates
from gradex.selection.transfer import draw_contexts, effects, interactions
from gradex.transfer import Config, transfer

SHIFTS = {"far": 0.0, "good": 1.0, "other/one": 0.0, "plain": 0.0, "wrong": -1.0}


@pytest.fixture
def store(make_store, gradients):
    """Sources whose gradients point more or less to where the target's do, or away from there."""
    named = {name: gradients(12, seed) + SHIFTS[name] for seed, name in enumerate(SHIFTS)}
    return make_store(Path("store"), {name: g.astype(np.float32) for name, g in named.items()})


def config(**more) -> Config:
    return Config(store="store", **{"num_contexts": 8} | more)


def lines(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_tables_are_what_the_functions_give(store):
    run = transfer(config(seed=3))
    fitted = Linear().fit(store)
    contexts = draw_contexts(store.sources, count=8, size=0.5, seed=3)

    def score(subsets):
        return fitted.predict(subsets).value

    found = effects(score, store.sources, contexts=contexts, seed=3)
    rows = lines(run / "transfer.csv")
    assert [(r["source"], r["target"]) for r in rows] == [(name, "t") for name in store.sources]
    for key, matrix in (
        ("effect", found.mean),
        ("low", found.low),
        ("high", found.high),
        ("hurts_share", found.hurts_share),
    ):
        np.testing.assert_allclose([float(r[key]) for r in rows], matrix[:, 0], rtol=1e-5)
    (matrix,) = interactions(score, store.sources, contexts=contexts)
    rows = lines(run / "affinity.csv")
    assert len(rows) == 10 and set(rows[0]) == {"target", "source", "other", "interaction"}
    for row in rows:
        i, j = (store.sources.index(row[key]) for key in ("source", "other"))
        assert float(row["interaction"]) == pytest.approx(matrix[i, j], rel=1e-5)


def test_what_helps_and_what_hurts_is_said(store, caplog):
    caplog.set_level(logging.INFO)
    content = json.loads((transfer(config()) / "transfer.json").read_text())
    (target,) = content["targets"]
    assert target["helps"][0] == "good" and target["hurts"][0] == "wrong"
    assert content["unit"] == "uncalibrated" and content["contexts"] == 8
    (line,) = [m for m in caplog.messages if m.startswith("t: ")]
    assert line.startswith("t: helped by good -") and "; hurt by wrong +" in line


def test_there_are_two_kinds_of_maps(store):
    run = transfer(config())
    pictures = {str(path.relative_to(run)) for path in run.rglob("*.png")}
    assert pictures == {"effects.png", "affinity/t.png"}


def test_a_written_config_repeats_the_tables(store):
    first = transfer(config(seed=1, context_size=0.7))
    assert main(transfer, Config, ["--config", str(first / "config.yaml")]) == 0
    (second,) = set(Path("runs/transfer").iterdir()) - {first}
    assert yaml.safe_load((second / "config.yaml").read_text())["context_size"] == 0.7
    for name in ("transfer.csv", "affinity.csv", "transfer.json", "effects.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_sources_that_the_affinity_has_no_room_for_are_named(store, caplog):
    caplog.set_level(logging.INFO)
    run = transfer(config(max_pairs=3))
    affinity = json.loads((run / "transfer.json").read_text())["affinity"]
    assert len(lines(run / "affinity.csv")) == 3 and {"good", "wrong"} <= set(affinity["sources"])
    assert sorted(affinity["sources"] + affinity["left_out"]) == store.sources
    assert f"left out: {', '.join(affinity['left_out'])}" in caplog.text


def test_fewer_contexts_than_asked_for_are_said(store, caplog):
    caplog.set_level(logging.INFO)
    content = json.loads((transfer(config(num_contexts=50)) / "transfer.json").read_text())
    assert content["contexts"] == 10 and content["sources_a_context"] == 2
    assert "there are only 10 subsets of 2 sources" in caplog.text


def test_calibrated_losses_are_compared_as_logarithms(store, monkeypatch):
    weights = np.linspace(-1, 1, len(store.sources))

    def predict(self, subsets):
        value = np.exp(membership(subsets, store.sources) @ weights)[:, None]
        return Estimates(["t"], value, value, value, calibrated=True)

    monkeypatch.setattr(Linear, "predict", predict)
    run = transfer(config())
    changes = [float(row["effect"]) for row in lines(run / "transfer.csv")]
    np.testing.assert_allclose(changes, weights, atol=1e-6)
    assert json.loads((run / "transfer.json").read_text())["unit"] == "log loss"


def test_two_sources_have_effects_and_no_pairs_to_compare(make_store, gradients, caplog):
    caplog.set_level(logging.INFO)
    make_store(Path("store"), {"a": gradients(6, 0), "b": gradients(6, 1)})
    run = transfer(config())
    rows = lines(run / "transfer.csv")
    assert len(rows) == 2 and all(row["low"] == row["high"] == "" != row["effect"] for row in rows)
    assert lines(run / "affinity.csv") == [] and not (run / "affinity").exists()
    assert "two sources have no third" in caplog.text


def test_one_source_is_refused(make_store, gradients):
    make_store(Path("store"), {"a": gradients(6)})
    with pytest.raises(GradexError, match="found 1 source, expected at least 2"):
        transfer(config())
    assert list(Path("runs/transfer").iterdir()) == []


@pytest.mark.parametrize(
    "flag", [{"num_contexts": 0}, {"context_size": 1.5}, {"max_pairs": 0}, {"seed": -1}]
)
def test_flags_out_of_range_are_refused(flag):
    with pytest.raises(GradexError, match=f"--{next(iter(flag))}: found"):
        Config(**flag)
