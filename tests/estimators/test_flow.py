"""The flow estimate: an eigendecomposition, its limits, and the descent that it stands for."""

import numpy as np
import pytest
from planted import store_of, unit

from gradex.errors import GradexError
from gradex.estimators.flow import Flow
from gradex.estimators.linear import Linear

DIM = 6
SUBSETS = [frozenset("a"), frozenset("bd"), frozenset("abcd")]
MEMBER = np.array([[name in subset for name in "abcd"] for subset in SUBSETS], dtype=np.float64)


@pytest.fixture
def sources():
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=(rows, DIM)) for n, rows in zip("abcd", (9, 20, 5, 12), strict=True)}


@pytest.fixture
def store(tmp_path, sources):
    return store_of(tmp_path / "store", sources, {"t": np.ones((3, DIM))})


def stacked(sources, subset):
    return np.concatenate([unit(sources[name].astype(np.float32)) for name in sorted(subset)])


@pytest.mark.parametrize("t", [1e-3, 1.0, 300.0, 1e5])
def test_equals_an_eigendecomposition_loop(store, sources, t):
    found = Flow(t=t).fit(store).displacements(MEMBER)
    for z, subset in zip(found, SUBSETS, strict=True):
        g = stacked(sources, subset).astype(np.float64)
        w, v = np.linalg.eigh(g.T @ g / len(g))
        slow = -v @ (-np.expm1(-t * w) / w * (v.T @ g.mean(0)))
        np.testing.assert_allclose(z, slow, atol=2e-6 * np.linalg.norm(slow))


def test_equals_gradient_descent_in_small_steps(store, sources):
    found = Flow(t=2.0).fit(store).displacements(MEMBER[:1])[0]
    g = stacked(sources, "a")
    z, steps = np.zeros(DIM), 20000
    for _ in range(steps):
        z -= 2.0 / steps * (g.T @ (g @ z + 1)) / len(g)
    np.testing.assert_allclose(found, z, rtol=1e-3)


def test_a_short_time_is_one_gradient_step(store, sources):
    found = Flow(t=1e-7).fit(store).displacements(MEMBER)
    wanted = [-1e-7 * stacked(sources, subset).mean(0) for subset in SUBSETS]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-13)


def test_a_long_time_is_a_regression_without_ridge(store):
    long = Flow(t=1e9).fit(store).displacements(MEMBER)
    free = Linear(lam=1e-12).fit(store).displacements(MEMBER)
    np.testing.assert_allclose(long, free, rtol=1e-5)


def test_time_is_in_units_of_the_rows_mean_square(tmp_path, sources):
    """Raw rows three times as long: the same time gives a third of z, the same estimate."""
    targets = {"t": np.ones((3, DIM))}
    one = store_of(tmp_path / "one", sources, targets)
    three = store_of(tmp_path / "three", {n: 3 * g for n, g in sources.items()}, targets)
    np.testing.assert_allclose(
        Flow(t=5.0, source_norm="raw").fit(one).displacements(MEMBER),
        3 * Flow(t=5.0, source_norm="raw").fit(three).displacements(MEMBER),
        rtol=1e-5,
    )


def test_numbers_that_are_not_finite_name_the_sources(store):
    fitted = Flow().fit(store)
    fitted.sums_[1] = np.nan
    with pytest.raises(GradexError, match="of b, d leave"):
        fitted.predict([frozenset("bd")])
