"""Weights from inner products: optimality against slow searches, invariances, planted sources."""

import logging
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize

from gradex.errors import GradexError
from gradex.progress import say_once
from gradex.selection.pareto import (
    balance_bounds,
    balance_weights,
    cosine_weights,
    descent_weights,
    match_weights,
    min_norm,
    unit_rows,
)

SOLVERS = {
    "min_norm": lambda gram, b: min_norm(gram),
    "match": match_weights,
    "balance": balance_weights,
    "descent": descent_weights,
    "cosine": cosine_weights,
}
ALL = pytest.mark.parametrize("name", SOLVERS)
SHAPES = [(2, 5), (3, 2), (4, 8), (6, 3), (9, 40)]


def drawn(m: int, dim: int, *, seed: int = 0, lean: float = 0.3):
    """Sources and a target that agree a little."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, dim)) + lean, rng.normal(size=dim) + lean


def products(rows, target):
    return rows @ rows.T, rows @ target


@pytest.fixture(autouse=True)
def say_anew():
    say_once.cache_clear()


@ALL
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_shares(name, shape, seed):
    weights = SOLVERS[name](*products(*drawn(*shape, seed=seed)))
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-12)


# The two least-squares problems: the conditions of optimality, which prove it for convex ones.


def require_nearest(rows, point, weights):
    """No corner of the hull is nearer along the way from the one found: (g_i - d).(d - p) >= 0."""
    found = weights @ rows
    slack = (rows - found) @ (found - point)
    scale = np.abs(rows).max() ** 2 + np.abs(point).max() ** 2
    assert slack.min() >= -1e-10 * scale
    assert np.abs(slack[weights > 1e-9]).max() <= 1e-10 * scale


@pytest.mark.parametrize("shape", [*SHAPES, (60, 20), (200, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_min_norm_and_match_are_optimal(shape, seed):
    rows, target = drawn(*shape, seed=seed)
    gram, b = products(rows, target)
    require_nearest(rows, np.zeros(shape[1]), min_norm(gram))
    # Only the part of the target in the span of the sources is known to the gram, and needed.
    inside = np.linalg.lstsq(rows.T, target, rcond=None)[0] @ rows
    require_nearest(rows, inside, match_weights(gram, b))


@pytest.mark.parametrize("seed", range(5))
def test_match_agrees_with_a_slow_solver_that_sees_the_vectors(seed):
    rows, target = drawn(5, 12, seed=seed)
    slow = minimize(
        lambda a: ((a @ rows - target) ** 2).sum(),
        np.full(5, 0.2),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weights = match_weights(*products(rows, target))
    np.testing.assert_allclose(weights, slow.x, atol=1e-5)
    assert ((weights @ rows - target) ** 2).sum() <= slow.fun + 1e-9


def test_match_is_the_min_norm_of_the_rows_seen_from_the_target():
    rows, target = drawn(6, 10)
    np.testing.assert_allclose(
        match_weights(*products(rows, target)),
        min_norm((rows - target) @ (rows - target).T),
        atol=1e-9,
    )


def test_min_norm_of_two_is_the_closed_form():
    """Sener and Koltun, equation 4."""
    for seed in range(20):
        rows, _ = drawn(2, 4, seed=seed)
        apart = rows[1] - rows[0]
        first = np.clip(apart @ rows[1] / (apart @ apart), 0, 1)
        np.testing.assert_allclose(min_norm(rows @ rows.T), [first, 1 - first], atol=1e-12)


def test_min_norm_lowers_every_loss_or_finds_that_nothing_does():
    rows, _ = drawn(5, 30, lean=0.5)
    gram = rows @ rows.T
    weights = min_norm(gram)
    assert (gram @ weights).min() >= weights @ gram @ weights - 1e-9 > 0
    opposed = np.vstack([rows, -rows.sum(0)])
    weights = min_norm(opposed @ opposed.T)
    assert np.linalg.norm(weights @ opposed) < 1e-7 * np.linalg.norm(opposed)


# The two linear programs: against all corners of what is allowed.


def best_corner(gain, rows, bounds):
    """The best gain over the simplex cut by rows a >= bounds, by trying every corner of it."""
    m = len(gain)
    held = np.isfinite(bounds)
    edges = np.vstack([np.eye(m), rows[held]])
    levels = np.append(np.zeros(m), bounds[held])
    best = -np.inf
    for chosen in combinations(range(len(edges)), m - 1):
        system = np.vstack([np.ones(m), edges[list(chosen)]])
        if abs(np.linalg.det(system)) < 1e-12:
            continue
        corner = np.linalg.solve(system, np.append(1.0, levels[list(chosen)]))
        if (edges @ corner - levels).min() >= -1e-9:
            best = max(best, float(gain @ corner))
    return best


# gram and b of four sources: all agree with the target, some do, none does; sources in conflict.
AXES = np.eye(4)
CASES = {
    "all_align": (AXES + 0.2, np.array([1.0, 0.5, 0.3, 0.8])),
    "mixed": (AXES + 0.2, np.array([1.0, 0.5, -0.6, -0.2])),
    "none_align": (AXES + 0.2, np.array([-1.0, -0.5, -0.3, -0.8])),
    "conflict": (np.array([[1, -0.9, 0, 0], [-0.9, 1, 0, 0], [0, 0, 1, -0.4], [0, 0, -0.4, 1]])
                 @ AXES, np.array([1.0, 0.7, -0.6, 0.5])),
}  # fmt: skip


def case(name: str):
    rows, target = CASES[name]
    return products(rows.astype(float), target)


@pytest.mark.parametrize("name", CASES)
def test_balance_is_the_best_corner(name):
    gram, b = case(name)
    weights = balance_weights(gram, b)
    assert (gram @ weights - balance_bounds(b)).min() >= -1e-7
    assert b @ weights == pytest.approx(best_corner(b, gram, balance_bounds(b)), abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_descent_is_the_best_corner_or_says_that_there_is_none(name, caplog):
    gram, b = case(name)
    rows, bounds = np.vstack([gram, b]), np.append(np.zeros(4), min(b.max(), 0))
    weights, best = descent_weights(gram, b), best_corner(gram.sum(1), rows, bounds)
    if best == -np.inf:
        assert weights.tolist() == [0.25] * 4 and "cannot be had with any mixture" in caplog.text
    else:
        assert (rows @ weights - bounds).min() >= -1e-7
        assert gram.sum(1) @ weights == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("solve", [balance_weights, descent_weights])
@pytest.mark.parametrize("seed", range(8))
def test_the_linear_programs_are_the_best_corner_of_random_ones(solve, seed):
    gram, b = products(*drawn(4, 6, seed=seed))
    if solve is balance_weights:
        gain, rows, bounds = b, gram, balance_bounds(b)
    else:
        gain, rows = gram.sum(1), np.vstack([gram, b])
        bounds = np.append(np.zeros(4), min(b.max(), 0))
    best = best_corner(gain, rows, bounds)
    if np.isfinite(best):
        assert gain @ solve(gram, b) == pytest.approx(best, rel=1e-6)


def test_descent_that_cannot_be_had_is_said(caplog):
    """All of the source that hurts the target least is too much for the other one."""
    rows = np.array([[1.0, 0.0], [-1.0, 0.2]])
    with caplog.at_level(logging.WARNING):
        weights = descent_weights(*products(rows, np.array([-1.0, -20.0])))
    assert weights.tolist() == [0.5, 0.5]
    assert "descent: that no loss rises" in caplog.text


def test_bounds_of_balance():
    assert balance_bounds(np.array([2.0, 1.0, 0.0, -3.0])).tolist() == [0, -np.inf, 0, -3]
    assert balance_bounds(np.array([-2.0, -1.0])).tolist() == [0, 0]
    assert balance_bounds(np.array([2.0, 2.0])).tolist() == [0, 0]


# Laws of all.


@ALL
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_sources_does_not_matter(name, seed):
    rows, target = drawn(6, 9, seed=seed)
    order = np.random.default_rng(1).permutation(6)
    weights = SOLVERS[name](*products(rows, target))
    np.testing.assert_allclose(
        SOLVERS[name](*products(rows[order], target)), weights[order], atol=1e-7
    )


@ALL
@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e6])
def test_the_unit_of_the_gradients_does_not_matter(name, size):
    rows, target = drawn(5, 9, seed=2)
    weights = SOLVERS[name](*products(rows, target))
    scaled = SOLVERS[name](*products(size * rows, size * target))
    np.testing.assert_allclose(scaled, weights, atol=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_balance_stands_gradients_of_very_different_lengths(seed, caplog):
    """As late in a training: the good sources' gradients are all but gone, the others' are not."""
    rows, target = drawn(6, 9, seed=seed)
    rows[:3] *= 10.0 ** np.random.default_rng(seed).uniform(-7, -4, size=(3, 1))
    gram, b = products(rows, 1e-5 * target)
    weights = balance_weights(gram, b)
    short = gram @ weights - balance_bounds(b)
    assert (short >= -1e-6 * np.abs(gram).max(1)).all() and not caplog.text


@ALL
def test_one_source_has_all(name):
    assert SOLVERS[name](np.array([[2.5]]), np.array([0.5])).tolist() == pytest.approx([1.0])


@ALL
@pytest.mark.parametrize("count", [2, 4])
def test_equal_sources_make_the_same_mixture_as_one(name, count):
    rows = np.tile([1.0, 2.0, -0.5], (count, 1))
    weights = SOLVERS[name](*products(rows, np.array([0.4, 0.1, 0.2])))
    np.testing.assert_allclose(weights @ rows, rows[0], rtol=1e-9)


@pytest.mark.parametrize("name", ["min_norm", "match"])
def test_a_duplicate_changes_no_mixture(name):
    rows, target = drawn(5, 9, seed=4)
    doubled = np.vstack([rows, rows[:2]])
    once, twice = SOLVERS[name](*products(rows, target)), SOLVERS[name](*products(doubled, target))
    np.testing.assert_allclose(twice @ doubled, once @ rows, atol=1e-7)


@pytest.mark.parametrize("name", ["match", "balance", "cosine"])
@pytest.mark.parametrize("seed", range(5))
def test_a_negated_source_has_no_weight(name, seed):
    """Beside a part of the target's own rows, what points the other way is left out."""
    rng = np.random.default_rng(seed)
    target, *others = np.linalg.qr(rng.normal(size=(50, 4)))[0].T
    part = target + 0.1 * others[0]
    weights = SOLVERS[name](*products(np.stack([part, -target, *others]), target))
    assert weights[1] == 0 and weights[0] == weights.max()


def test_min_norm_does_what_nobody_wants_of_sources():
    """It takes the negated source and the short one, whatever the target: a diagnostic only."""
    target = np.array([1.0, 0.0, 0.0])
    weights = min_norm(np.diag([1.0, 0.01]))
    assert weights[1] > 0.9
    rows = np.stack([target, -target])
    np.testing.assert_allclose(min_norm(rows @ rows.T), [0.5, 0.5])


def test_the_length_of_the_target_does_not_matter_to_directions():
    rows, target = drawn(5, 9, seed=3)
    gram, b = products(rows, target)
    np.testing.assert_allclose(cosine_weights(gram, 7 * b), cosine_weights(gram, b))
    np.testing.assert_allclose(cosine_weights(*products(rows * [[9], [1], [1], [1], [1]], target)),
                               cosine_weights(gram, b))  # fmt: skip


def test_unit_rows_take_lengths_away():
    rows, _ = drawn(4, 6, seed=5)
    lengths = np.array([[1e-3], [1.0], [30.0], [7.0]])
    np.testing.assert_allclose(unit_rows(rows * lengths), unit_rows(rows))
    np.testing.assert_allclose(np.linalg.norm(unit_rows(rows), axis=1), 1)
    # The linear program alone takes the loudest of two that point the same way.
    pair = np.array([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    assert balance_weights(*products(pair, np.array([1.0, 0.1])))[1] == pytest.approx(1)


def test_where_no_source_agrees_cosine_says_so(caplog):
    weights = cosine_weights(np.eye(3), np.array([-1.0, 0.0, -2.0]))
    assert weights.tolist() == [1 / 3] * 3 and "that a source agrees with the target" in caplog.text


BAD = {
    "zero": (np.diag([1.0, 0.0]), np.ones(2), "of source 1 is zero"),
    "nan": (np.array([[1.0, np.nan], [np.nan, 1.0]]), np.ones(2), "not finite"),
    "none": (np.zeros((0, 0)), np.zeros(0), "or there are none"),
    "lopsided": (np.array([[1.0, 0.5], [0.0, 1.0]]), np.ones(2), "not symmetric"),
}


@ALL
@pytest.mark.parametrize("kind", BAD)
def test_sources_without_direction_are_refused(name, kind):
    gram, b, says = BAD[kind]
    with pytest.raises(GradexError, match=says):
        SOLVERS[name](gram, b)


@pytest.mark.parametrize("name", ["match", "balance", "descent", "cosine"])
def test_a_target_that_tells_nothing_is_refused(name):
    with pytest.raises(GradexError, match="tells nothing of their weights"):
        SOLVERS[name](np.eye(2), np.zeros(2))
    with pytest.raises(GradexError, match="with the target are not finite"):
        SOLVERS[name](np.eye(2), np.array([1.0, np.inf]))


def test_no_unit_row_of_nothing():
    for rows in (np.zeros((1, 3)), np.full((1, 3), np.nan)):
        with pytest.raises(GradexError, match="has no direction"):
            unit_rows(rows)
