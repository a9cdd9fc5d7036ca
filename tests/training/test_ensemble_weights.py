"""Weights of an ensemble: the least loss on the simplex, as its conditions of optimality say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.training.ensemble_weights import best_weights, mixture_loss


def drawn(seed: int, members: int, tokens: int, *, spread: float):
    """Log-probabilities around a common difficulty of each token, and tokens' importance."""
    rng = np.random.default_rng(seed)
    common = -rng.exponential(1.0, tokens)
    log_probs = np.minimum(common + spread * rng.normal(size=(members, tokens)), -1e-9)
    importance = rng.uniform(0.1, 1, tokens)
    return log_probs, importance / importance.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    members=st.integers(1, 8),
    spread=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0, 300.0]),
)
def test_no_member_would_gain_by_more_weight(seed, members, spread):
    log_probs, importance = drawn(seed, members, 50, spread=spread)
    weights = best_weights(log_probs, importance)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    loss = mixture_loss(log_probs, importance, weights)
    singles = -(log_probs @ importance)
    assert loss <= singles.min() + 1e-7
    nudged = 0.99 * weights + 0.01 * np.eye(members)
    assert all(mixture_loss(log_probs, importance, other) >= loss - 1e-7 for other in nudged)


def test_a_single_member_has_all_the_weight():
    log_probs, importance = drawn(0, 1, 20, spread=1.0)
    np.testing.assert_allclose(best_weights(log_probs, importance), [1.0])
    whole = mixture_loss(log_probs, importance, np.ones(1))
    assert whole == pytest.approx(-(log_probs[0] @ importance))


def test_a_planted_mixture_is_recovered():
    """Tokens drawn from a mixture of known distributions; its loss is least at its own weights."""
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.full(30, 0.2), size=3) + 1e-12
    planted = np.array([0.6, 0.4, 0.0])
    # Every word once, as important as it is likely: an endless sample.
    weights = best_weights(np.log(members), planted @ members)
    np.testing.assert_allclose(weights, planted, atol=1e-4)
    words = rng.choice(30, 20_000, p=planted @ members / (planted @ members).sum())
    found = best_weights(np.log(members[:, words]), np.full(20_000, 1 / 20_000))
    np.testing.assert_allclose(found, planted, atol=0.03)


def test_one_that_is_worse_everywhere_gets_nothing():
    log_probs, importance = drawn(1, 2, 40, spread=0.5)
    worse = log_probs.min(0) - 0.1
    assert best_weights(np.vstack([log_probs, worse]), importance)[2] == 0


def test_twins_share_what_one_would_have():
    log_probs, importance = drawn(2, 2, 40, spread=0.5)
    alone = best_weights(log_probs, importance)
    twins = best_weights(log_probs[[0, 0, 1]], importance)
    np.testing.assert_allclose([twins[0] + twins[1], twins[2]], alone, atol=1e-5)


def test_the_order_of_tokens_and_members_does_not_matter():
    log_probs, importance = drawn(3, 4, 60, spread=1.0)
    rng = np.random.default_rng(0)
    members, tokens = rng.permutation(4), rng.permutation(60)
    other = best_weights(log_probs[members][:, tokens], importance[tokens])
    np.testing.assert_allclose(other, best_weights(log_probs, importance)[members], atol=1e-5)
