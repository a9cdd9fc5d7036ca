"""The linear estimate: the closed form, agreement with a slow loop, invariances, planted truth."""

import numpy as np
import pytest
from planted import store_of, unit

from gradex.arguments import EstimatorArguments
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.linear import Linear

DIM = 6


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


def test_exact_where_the_model_is_linear(tmp_path):
    """Losses that fall by g w along the planted w: each source's rows all ask for a fall of one,
    and where one w gives it to all of them, the estimate finds the targets' losses after it."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=DIM)
    w /= np.linalg.norm(w)

    def rows(count):  # unit rows with g w = -0.4 exactly: what the regression asks for, scaled
        away = rng.normal(size=(count, DIM))
        away -= np.outer(away @ w, w)
        return np.sqrt(1 - 0.16) * unit(away) - 0.4 * w

    sources = {name: rows(n) for name, n in zip("abc", (9, 20, 12), strict=True)}
    target = {"t": unit(rng.normal(size=(50, DIM)))}
    store = store_of(tmp_path / "s", sources, target)
    fitted = Linear(lam=1e-9, target_norm="raw").fit(store)
    moved = 1.5 + target["t"].mean(0) @ (w / 0.4)
    subsets = [frozenset("a"), frozenset("bc"), frozenset("abc")]
    np.testing.assert_allclose(fitted.predict(subsets).value[:, 0], moved, rtol=1e-5)


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
