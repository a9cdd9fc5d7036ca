"""The linear estimate: the closed form, agreement with a slow loop, invariances, planted truth."""

import numpy as np
import pytest

from gradex.arguments import EstimatorArguments
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.linear import Linear
from gradex.gradients.shards import ROW_TYPE, Faults, write_shard
from gradex.gradients.store import GradientStore

DIM = 6


def store_of(path, sources: dict, targets: dict, *, loss: float = 1.5) -> GradientStore:
    space = {
        "project_dim": DIM,
        "differentiate": "loss",
        "dtype": "float32",
        "precondition": "none",
    }
    store = GradientStore.create(path, space, origin={}, shard_rows=8)
    for side, named in (("train", sources), ("target", targets)):
        for name, gradients in named.items():
            rows = np.zeros(len(gradients), ROW_TYPE)
            rows["id"] = [f"{name}{i}" for i in range(len(rows))]
            rows["split"] = "train" if side == "train" else "select"
            rows["grad_norm"] = np.linalg.norm(gradients, axis=1)
            rows["ok"], rows["scale"], rows["loss"] = True, 1, loss
            for i, shard in enumerate(store.enter(side, name, rows=len(rows), data_hash="h")):
                part = slice(8 * i, 8 * i + 8)
                pair = (gradients[part].astype(np.float32), rows[part])
                write_shard(shard, {"": pair}, faults=Faults({}, {}), versions={})
    store.save_plan()
    return GradientStore.open(path)


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    sources = {
        name: rng.normal(size=(n, DIM)) for name, n in zip("abcd", (9, 20, 5, 12), strict=True)
    }
    targets = {name: rng.normal(size=(7, DIM)) for name in ("s", "t")}
    return sources, targets, store_of(tmp_path / "store", sources, targets)


def slow_estimate(sources, target, subset, *, lam, loss=1.5):
    """Ridge regression of "every loss falls by one" on unit rows, as stacked least squares."""
    unit = {n: g / np.linalg.norm(g, axis=1, keepdims=True) for n, g in sources.items()}
    everything = np.concatenate(list(unit.values()))
    tau = (everything**2).sum() / len(everything)
    g = np.concatenate([unit[name] for name in subset])
    stacked = np.concatenate([g, np.sqrt(len(g) * lam * tau) * np.eye(DIM)])
    wanted = np.concatenate([-np.ones(len(g)), np.zeros(DIM)])
    z = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    norm = np.linalg.norm(target, axis=1)
    middle = np.median(norm)
    soft = target / (norm + middle)[:, None] * middle
    return loss + soft.mean(0) @ z


@pytest.mark.parametrize("lam", [1e-3, 0.1])
def test_equals_stacked_least_squares(world, lam):
    sources, targets, store = world
    subsets = [frozenset("a"), frozenset("bd"), frozenset("abcd")]
    found = Linear(lam=lam).fit(store).predict(subsets)
    wanted = [
        [slow_estimate(sources, targets[t], sorted(s), lam=lam) for t in "st"] for s in subsets
    ]
    np.testing.assert_allclose(found.value, wanted, rtol=1e-5)
    assert not found.calibrated and np.isnan(found.low).all()


def test_rows_of_any_length_weigh_the_same(world, tmp_path):
    sources, targets, store = world
    scaled = {name: 100 * g if name == "a" else g for name, g in sources.items()}
    other = store_of(tmp_path / "scaled", scaled, targets)
    subsets = [frozenset("ab"), frozenset("acd")]
    np.testing.assert_allclose(
        Linear().fit(store).predict(subsets).value,
        Linear().fit(other).predict(subsets).value,
        rtol=1e-5,
    )


def test_blocks_do_not_change_the_estimates(world, monkeypatch):
    *_, store = world
    subsets = [frozenset(s) for s in ("a", "b", "ab", "cd", "abcd")]
    whole = Linear().fit(store).predict(subsets).value
    monkeypatch.setattr("gradex.estimators.regression.BLOCK_SUBSETS", 1)
    np.testing.assert_allclose(Linear().fit(store).predict(subsets).value, whole, rtol=1e-10)


def test_a_planted_helper_is_ranked_first(tmp_path):
    rng = np.random.default_rng(1)
    direction = np.eye(DIM)[0]
    sources = {name: rng.normal(size=(30, DIM)) for name in "abc"}
    sources["helper"] = 3 * direction + 0.3 * rng.normal(size=(30, DIM))
    sources["enemy"] = -sources["helper"]
    targets = {"t": direction + 0.3 * rng.normal(size=(20, DIM))}
    store = store_of(tmp_path / "s", sources, targets)
    values = Linear().fit(store).predict([frozenset([name]) for name in store.sources]).value[:, 0]
    order = [store.sources[i] for i in np.argsort(values)]
    assert order[0] == "helper" and order[-1] == "enemy"


def test_unknown_and_empty_subsets_are_refused(world):
    *_, store = world
    fitted = Linear().fit(store)
    with pytest.raises(GradexError, match="unknown source 'z'"):
        fitted.predict([frozenset("az")])
    with pytest.raises(GradexError, match="empty subset"):
        fitted.predict([frozenset()])
    with pytest.raises(GradexError, match="known are: linear, flow"):
        make_estimator(EstimatorArguments(estimator="cubic"))
