"""Estimates from several points: one point changes nothing, the mean is of standardised values."""

import numpy as np
import pytest
from planted import store_of

from gradex.data.subsets import sample_subsets
from gradex.estimators.averaged import Averaged
from gradex.estimators.linear import Linear
from gradex.estimators.reference import reference_subsets

NAMES = list("abcdef")


def a_store(path, *, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    sources = {name: rng.normal(size=(9, 5)) for name in NAMES}
    return store_of(path, sources, {"t": scale * rng.normal(size=(8, 5))})


@pytest.fixture
def stores(tmp_path):
    late = a_store(tmp_path / "late", seed=0)
    early = a_store(tmp_path / "late" / "points" / "10", seed=1, scale=50.0)
    return late, early


SUBSETS = sample_subsets(NAMES, 12, sizes=[0.5], seed=1)


def test_one_point_changes_nothing(tmp_path):
    store = a_store(tmp_path / "alone", seed=0)
    np.testing.assert_array_equal(
        Averaged(Linear).fit(store).predict(SUBSETS).value,
        Linear().fit(store).predict(SUBSETS).value,
    )


def test_the_average_is_of_standardised_values_on_the_scale_of_the_stores_own_point(stores):
    population = reference_subsets(NAMES)
    fits = [Linear().fit(store) for store in stores]
    scales = [(v.mean(0), v.std(0)) for v in (fit.predict(population).value for fit in fits)]
    standard = [
        (fit.predict(SUBSETS).value - middle) / spread
        for fit, (middle, spread) in zip(fits, scales, strict=True)
    ]
    wanted = scales[0][0] + scales[0][1] * (standard[0] + standard[1]) / 2
    found = Averaged(Linear).fit(stores[0]).predict(SUBSETS)
    np.testing.assert_allclose(found.value, wanted, rtol=1e-9)
    assert not found.calibrated and np.isnan(found.low).all()


def test_displacements_are_those_of_the_stores_own_point(stores):
    member = np.eye(len(NAMES))
    np.testing.assert_array_equal(
        Averaged(Linear).fit(stores[0]).displacements(member),
        Linear().fit(stores[0]).displacements(member),
    )
