"""Anchors are chosen from as many subsets as there are, or it is said that there are too few."""

import numpy as np
import pytest
from planted import store_of

from gradex.arguments import AnchorArguments, EstimatorArguments
from gradex.errors import GradexError
from gradex.estimators import make_calibrated
from gradex.training import anchors
from gradex.training.anchors import pick_anchors


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    sources = {name: rng.normal(size=(4, 3)) for name in "abcd"}
    return store_of(tmp_path / "store", sources, {"t": rng.normal(size=(4, 3))})


def picked(store, count: int, **more):
    return pick_anchors(EstimatorArguments(), AnchorArguments(), store, ["t"], count=count, **more)


def test_more_may_be_asked_for_than_are_usually_chosen_from(store, monkeypatch):
    monkeypatch.setattr(anchors, "POOL", 4)
    assert len(set(picked(store, 4))) == 4
    assert len(set(picked(store, 6))) == 6  # all pairs


def test_more_than_there_are_is_said(store):
    with pytest.raises(GradexError, match=r"found 7, but with --anchor_size 0.5 .* only 6 subsets"):
        picked(store, 7)
    with pytest.raises(GradexError, match="only 0 subsets of its 4 sources"):
        picked(store, 4, exclude=picked(store, 6))


def test_a_surrogate_is_not_calibrated(store):
    surrogate = EstimatorArguments(estimator="surrogate")
    with pytest.raises(GradexError, match="surrogate: is fitted to true fine-tunes"):
        pick_anchors(surrogate, AnchorArguments(), store, ["t"], count=4)
    with pytest.raises(GradexError, match="surrogate: is fitted to true fine-tunes"):
        make_calibrated(surrogate, [])
