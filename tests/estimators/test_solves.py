"""The solves: equal to textbook algebra on full matrices, at every size, for any number at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.estimators.packed import diagonal, pack, packed_size
from gradex.estimators.solves import gradient_flow, ridge

SIZES = [1, 2, 5, 8, 33]


def systems(dim: int, count: int = 4, *, rank: int | None = None):
    """Gram matrices of spectra over eight decades, and vectors."""
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(count, rank or 2 * dim, dim)) * np.logspace(0, -4, dim)
    grams = np.einsum("sri,srj->sij", rows, rows) / rows.shape[1]
    return grams, rng.normal(size=(count, dim))


def packed(grams):
    return np.stack([pack(gram) for gram in grams])


@pytest.mark.parametrize("dim", SIZES)
def test_a_packed_matrix_is_one_triangle(dim):
    (gram, *_), _ = systems(dim)
    assert pack(gram).shape == (packed_size(dim),)
    np.testing.assert_array_equal(np.sort(pack(gram)), np.sort(gram[np.triu_indices(dim)]))
    np.testing.assert_array_equal(np.sort(pack(gram)[diagonal(dim)]), np.sort(np.diag(gram)))


@pytest.mark.parametrize("dim", SIZES)
def test_ridge_equals_a_solve(dim):
    grams, means = systems(dim)
    found = ridge(0.1)(packed(grams), means, 1.7)
    wanted = [
        -np.linalg.solve(a + 0.17 * np.eye(dim), b) for a, b in zip(grams, means, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("t", [1e-3, 30.0, 300.0, 1e6])
def test_flow_equals_an_eigendecomposition(dim, t):
    grams, means = systems(dim)
    found = gradient_flow(t)(packed(grams), means, 1.7)
    for z, a, b in zip(found, grams, means, strict=True):
        w, v = np.linalg.eigh(a / 1.7)
        wanted = -v @ (-np.expm1(-t * w) / w * (v.T @ b)) / 1.7
        np.testing.assert_allclose(z, wanted, atol=1e-8 * np.linalg.norm(wanted))


def test_flow_of_fewer_rows_than_dims_goes_straight_where_nothing_pulls():
    """In the null space of A, f is t."""
    dim, t = 8, 50.0
    (a,), (b,) = systems(dim, 1, rank=3)
    null = np.linalg.svd(a)[2][3:]
    z = gradient_flow(t)(packed([a]), b[None], 1.0)[0]
    np.testing.assert_allclose(null @ z, -t * (null @ b), rtol=1e-8)


@given(x=st.floats(1e-12, 1e12))
@settings(max_examples=200, deadline=None)
def test_the_series_holds_for_any_time(x):
    """Of matrices of one number, whose f is known."""
    z = gradient_flow(x)(np.ones((1, 1)), -np.ones((1, 1)), 1.0)[0, 0]
    assert z == pytest.approx(-np.expm1(-x), rel=1e-9)


@pytest.mark.parametrize("solve", [ridge(0.01), gradient_flow(300.0)], ids=["ridge", "flow"])
def test_many_at_once_equal_one_by_one(solve):
    grams, means = systems(7, 5)
    one_by_one = [solve(packed(grams[i : i + 1]), means[i : i + 1], 2.0)[0] for i in range(5)]
    np.testing.assert_allclose(solve(packed(grams), means, 2.0), one_by_one, rtol=1e-8)


def test_what_has_no_solution_is_nan_and_the_others_are_solved():
    grams, means = systems(5, 3)
    grams[1] = -np.eye(5)
    found = ridge(0.01)(packed(grams), means, 1.0)
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()
