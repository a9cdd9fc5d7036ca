"""Kernel ridge: leaving out in closed form is leaving out, ridge is ridge, the mean is free."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from gradex.estimators.kernel_ridge import STRENGTHS, fit, linear, predict_left_out, rbf, solve

KERNELS = [rbf(0.5), linear, rbf(8.0)]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_strength = pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 100.0])


@pytest.fixture
def world() -> tuple[np.ndarray, np.ndarray]:
    """More runs than sources, so that the centred kernel of ridge has several zero eigenvalues."""
    rng = np.random.default_rng(0)
    return rng.integers(2, size=(14, 6)).astype(float), 3 + rng.normal(size=(14, 2))


@each_kernel
@each_strength
def test_the_closed_form_leaves_one_out(world, kernel, strength):
    rows, values = world
    _, missed = solve(kernel(rows, rows), values, [strength])
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        without = fit(rows[rest], values[rest], kernels=[kernel], strengths=[strength])
        wanted = values[i] - without.predict(rows[[i]])[0]
        np.testing.assert_allclose(missed[0, i], wanted, rtol=1e-4, atol=1e-7)


@each_strength
def test_the_linear_kernel_is_ridge_with_a_free_intercept(world, strength):
    rows, values = world
    singles = np.eye(rows.shape[1])
    slow = Ridge(alpha=strength * len(singles)).fit(rows, values)
    found = fit(rows, values, kernels=[linear], strengths=[strength])
    np.testing.assert_allclose(found.predict(singles), slow.predict(singles), rtol=1e-6)


@each_kernel
def test_the_mean_is_not_penalised(world, kernel):
    rows, values = world
    low, high = (fit(rows, values + more, kernels=[kernel]).predict(rows) for more in (0, 100))
    np.testing.assert_allclose(high, low + 100)


def test_every_target_has_what_predicts_its_left_out_runs_best(world):
    rows, values = world
    values[:, 0] = rows @ np.arange(6.0)
    found = fit(rows, values, kernels=KERNELS)
    missed = np.stack([solve(kernel(rows, rows), values, STRENGTHS)[1] for kernel in KERNELS])
    errors = (missed**2).sum(2)
    for column in (0, 1):
        kernel, strength = np.unravel_index(errors[..., column].argmin(), errors.shape[:2])
        alone = fit(rows, values, kernels=[KERNELS[kernel]], strengths=[STRENGTHS[strength]])
        assert found.kernels[column] is KERNELS[kernel]
        assert found.strengths[column] == STRENGTHS[strength]
        np.testing.assert_allclose(
            found.predict(rows)[:, column], alone.predict(rows)[:, column], rtol=1e-9
        )
    assert found.kernels[0] is linear and found.strengths[0] == min(STRENGTHS)


def test_a_left_out_run_chooses_nothing(world):
    """Whatever its value is, what is said of it stays; what is said of others does not."""
    rows, values = world
    other = values.copy()
    other[3] += 50
    before, after = (predict_left_out(rows, each, kernels=KERNELS) for each in (values, other))
    np.testing.assert_array_equal(before[3], after[3])
    assert not np.isclose(np.delete(before, 3, 0), np.delete(after, 3, 0)).any()
