"""Means of resampled rows: a pass over shards gives the draws that the bootstrap asks for."""

import numpy as np
import pytest
from planted import store_of

from gradex.errors import GradexError
from gradex.gradients.resampled_means import Resamples, source_means, target_means
from gradex.gradients.row_views import row_weights

RNG = np.random.default_rng(0)
SOURCES = {
    "a": RNG.normal(size=(30, 4)) + 1,
    "b": 3 * RNG.normal(size=(7, 4)),
    "c": RNG.normal(size=(16, 4)),
}
TARGETS = {"t": RNG.normal(size=(9, 4)), "u": RNG.normal(size=(5, 4))}


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "store", SOURCES, TARGETS)


def seen(rows, norm, middle):
    return rows * row_weights(np.linalg.norm(rows, axis=1), norm, middle)[:, None]


@pytest.mark.parametrize("norm", ["raw", "soft", "unit"])
def test_the_first_is_the_mean_of_all_rows(store, norm):
    lengths = {name: np.linalg.norm(rows, axis=1) for name, rows in (SOURCES | TARGETS).items()}
    middle = float(np.median(np.concatenate([lengths[name] for name in SOURCES])))
    found = source_means(store, store.sources, norm)
    assert found.shape == (1, 3, 4)
    for name, mean in zip(store.sources, found[0], strict=True):
        np.testing.assert_allclose(mean, seen(SOURCES[name], norm, middle).mean(0), atol=1e-6)
    for name, mean in zip(TARGETS, target_means(store, ["t", "u"], norm)[0], strict=True):
        own = float(np.median(lengths[name]))
        np.testing.assert_allclose(mean, seen(TARGETS[name], norm, own).mean(0), atol=1e-6)


def test_a_resample_is_the_mean_of_its_draws(tmp_path):
    """Rows along the axes: the mean tells how often each row was drawn."""
    store = store_of(tmp_path / "axes", {"a": np.eye(20)}, {"t": np.eye(20)[:4]}, shard_rows=3)
    times = 20 * source_means(store, ["a"], "raw", resamples=200, seed=1)[1:, 0]
    np.testing.assert_allclose(times, times.round(), atol=1e-5)
    np.testing.assert_allclose(times.sum(1), 20, rtol=1e-6)
    # Of a multinomial draw: variance 1 - 1/n a row, covariance -1/n of two, in one shard or not.
    covariance = np.cov(times.T)
    assert np.diag(covariance).mean() == pytest.approx(0.95, abs=0.1)
    apart = covariance[~np.eye(20, dtype=bool)]
    assert apart.mean() == pytest.approx(-0.05, abs=0.01)
    near = np.mean([covariance[i, i + 1] for i in range(0, 18, 3)])
    far = np.mean([covariance[i, i + 9] for i in range(9)])
    assert near == pytest.approx(-0.05, abs=0.08) and far == pytest.approx(-0.05, abs=0.08)


def test_the_spread_is_that_of_a_mean(store):
    found = source_means(store, ["a"], "raw", resamples=4000, seed=2)[1:, 0]
    wanted = SOURCES["a"].std(0) / np.sqrt(30)
    np.testing.assert_allclose(found.std(0), wanted, rtol=0.06)
    np.testing.assert_allclose(found.mean(0), SOURCES["a"].mean(0), atol=0.03)


def test_all_draws_are_dealt_out():
    deal, rng = Resamples(50, 11), np.random.default_rng(3)
    times = np.hstack([deal.next(rows, rng) for rows in (4, 0, 1, 6)])
    assert times.shape == (50, 11) and (times.sum(1) == 11).all() and not deal.left.any()


def test_draws_belong_to_a_seed_and_a_name(store):
    both = source_means(store, ["a", "b"], "unit", resamples=3, seed=5)
    np.testing.assert_array_equal(
        both, source_means(store, ["a", "b"], "unit", resamples=3, seed=5)
    )
    np.testing.assert_array_equal(
        both[:, ::-1], source_means(store, ["b", "a"], "unit", resamples=3, seed=5)
    )
    assert (both[1:] != source_means(store, ["a", "b"], "unit", resamples=3, seed=6)[1:]).any()


def test_one_row_is_always_drawn(tmp_path):
    store = store_of(tmp_path / "one", {"a": np.ones((1, 3))}, {"t": np.ones((2, 3))})
    assert (source_means(store, ["a"], "raw", resamples=9) == 1).all()


def test_a_target_without_select_rows_is_refused(store, monkeypatch):
    table = store.table("target", "t")
    table["split"] = "test"
    monkeypatch.setattr(type(store), "table", lambda self, side, name: table)
    with pytest.raises(GradexError, match="'t' has no good row"):
        target_means(store, ["t"], "unit")


def test_damaged_shards_are_refused(store):
    file = next((store.path / "train" / "a").glob("shard-00000.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(GradexError, match="shard-00000"):
        source_means(store, ["a"], "unit")
