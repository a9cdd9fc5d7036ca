"""How sure ranks are: sure where the data are, unsure where they say nothing, and reproducible."""

import numpy as np
import pytest
from planted import store_of

from gradex.data.subsets import sample_subsets
from gradex.estimators.linear import Linear
from gradex.estimators.ranks import rank_intervals
from gradex.estimators.row_outcomes import row_outcomes

NAMES = list("abcdef")
SUBSETS = sample_subsets(NAMES, 15, sizes=[0.5], seed=1)


def a_store(path, *, signal, rows=400, dim=40):
    """`signal` is how much of the targets' gradients is common to all rows and dimensions."""
    rng = np.random.default_rng(0)
    sources = {
        name: rng.normal(size=(20, dim)) + signal * step
        for name, step in zip(NAMES, np.linspace(-1, 1, len(NAMES)), strict=True)
    }
    return store_of(path, sources, {"t": rng.normal(size=(rows, dim)) + signal}, shard_rows=512)


def widths(store):
    fitted = Linear(lam=10.0).fit(store)
    low, high = rank_intervals(fitted, store, SUBSETS, ["t"])
    assert low.shape == high.shape == (15, 1) and (1 <= low).all() and (high <= 15).all()
    return (high - low).mean()


def test_ranks_are_surer_where_the_data_speak(tmp_path):
    sure, unsure = a_store(tmp_path / "sure", signal=3.0), a_store(tmp_path / "not", signal=0.0)
    assert widths(sure) < 4 < 6 < widths(unsure)


def test_the_interval_holds_the_rank_of_the_estimate(tmp_path):
    store = a_store(tmp_path / "s", signal=1.0)
    fitted = Linear().fit(store)
    low, high = rank_intervals(fitted, store, SUBSETS, ["t"])
    rank = fitted.predict(SUBSETS).value[:, 0].argsort().argsort() + 1
    assert ((low[:, 0] <= rank) & (rank <= high[:, 0])).mean() > 0.9


def test_the_same_seed_gives_the_same_ranks(tmp_path):
    store = a_store(tmp_path / "s", signal=1.0)
    fitted = Linear().fit(store)
    first, again = (rank_intervals(fitted, store, SUBSETS, ["t"], seed=4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_mean_of_the_rows_is_the_raw_first_order_estimate(tmp_path):
    store = a_store(tmp_path / "s", signal=1.0)
    fitted = Linear(target_norm="raw").fit(store)
    (found,) = row_outcomes(fitted, store, SUBSETS, ["t"])
    assert found.margin is None and len(found.ids) == 400
    wanted = fitted.predict(SUBSETS).value[:, 0]
    np.testing.assert_allclose(found.loss.mean(1), wanted, rtol=1e-6)


@pytest.mark.parametrize("subset", [0, 7])
def test_a_row_is_its_loss_and_its_own_first_order_change(tmp_path, subset):
    store = a_store(tmp_path / "s", signal=1.0, rows=30)
    fitted = Linear().fit(store)
    (found,) = row_outcomes(fitted, store, SUBSETS, ["t"])
    member = np.array([[float(name in SUBSETS[subset]) for name in store.sources]])
    z = fitted.displacements(member)[0]
    block = store.target("t", "select")
    wanted = block.table["loss"] + block.gradients @ z
    np.testing.assert_allclose(found.loss[subset], wanted, rtol=1e-6)
