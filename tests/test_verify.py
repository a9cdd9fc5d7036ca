"""What is verified, and beside what: held-out subsets only, every baseline or why it is missing."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from gradex import verify as module
from gradex.data.subsets import write_subsets
from gradex.errors import GradexError
from gradex.estimators.protocol import uncalibrated
from gradex.verify import Config, _held_out, _predictions

NAMES = list("abcd")
PAIRS = [frozenset(pair) for pair in combinations(NAMES, 2)]


def test_no_anchor_is_verified():
    config = Config(num_subsets=20, subset_size=0.5)
    assert set(_held_out(config, NAMES, exclude=[])) == set(PAIRS)
    assert set(_held_out(config, NAMES, exclude=PAIRS[:4])) == set(PAIRS[4:])
    file = write_subsets(Path("mine.txt"), PAIRS[3:], NAMES)
    assert _held_out(Config(subsets=str(file)), NAMES, exclude=PAIRS[:5]) == PAIRS[5:]


def test_nothing_but_anchors_is_no_evidence():
    with pytest.raises(GradexError, match="calibrated on every one of these"):
        _held_out(Config(subset_size=0.5), NAMES, exclude=PAIRS)


def test_a_subset_that_stands_twice_is_one(caplog):
    """It would count twice; and what is left out of a file is said."""
    file = write_subsets(Path("mine.txt"), [*PAIRS[:3], *PAIRS[:2]], NAMES)
    with caplog.at_level("INFO"):
        assert _held_out(Config(subsets=str(file)), NAMES, exclude=PAIRS[:1]) == PAIRS[1:3]
    assert "left out: 1 of 3 subsets, which the estimates are calibrated on" in caplog.text


class Toy:
    """Says a constant of every subset, a different one of each split."""

    def __init__(self, value: float):
        self.value = value

    def fit(self, store, *, targets, split):
        if self.value < 0:
            raise GradexError("this store has no text")
        self.said = self.value + (split == "select")
        return self

    def predict(self, subsets):
        return uncalibrated(["t"], np.full((len(subsets), 1), self.said))


def test_every_baseline_stands_beside_the_estimator(monkeypatch, make_store, gradients):
    toys = {"linear": Toy(1.0), "cosine": Toy(10.0), "ngram": Toy(-1.0)}
    monkeypatch.setattr(module, "BASELINES", ("cosine", "ngram"))
    monkeypatch.setattr(module, "estimator_of", lambda config, found: toys[config.estimator])
    store = make_store(Path("store"), {"a": gradients(3)})
    found, missing = _predictions(Config(), store, PAIRS, None)
    assert [p.method for p in found] == ["linear", "cosine"]
    assert [(p.test.value[0, 0], p.select.value[0, 0]) for p in found] == [(1, 2), (10, 11)]
    assert [p.in_losses for p in found] == [True, False]
    assert missing == {"ngram": "this store has no text"}


def test_flags_of_the_estimator_are_none_of_the_baselines(monkeypatch, make_store, gradients):
    """--as_published is logistic's alone; a baseline beside it is not missing for that."""
    monkeypatch.setattr(module, "estimator_of", lambda config, found: Toy(1.0))
    store = make_store(Path("store"), {"a": gradients(3)})
    config = Config(estimator="logistic", as_published=True)
    found, missing = _predictions(config, store, PAIRS, None)
    assert not missing and [p.method for p in found] == ["logistic", *module.BASELINES]
