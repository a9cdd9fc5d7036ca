"""The process over anchors: closed forms by a slow way, invariances, a planted world, coverage."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from scipy.stats import t as student

from gradex.estimators.anchored import (
    DEGREES,
    PRIOR,
    SLOPE,
    WIDE,
    Points,
    anchor,
    fit_variances,
    kernel,
    left_out_densities,
    relevances,
    spread_out,
)

VARIANCES = np.exp(PRIOR)


def points(count, *, seed=0, sources=6):
    rng = np.random.default_rng(seed)
    member = rng.integers(2, size=(count, sources)).astype(float)
    return Points(rng.normal(size=count), member * relevances(rng.normal(size=sources)))


def slow_kernel(a, b, i, j):
    line, bend, member, _ = VARIANCES
    apart = a.estimate[i] - b.estimate[j]
    distance = ((a.member[i] - b.member[j]) ** 2).sum()
    return (
        WIDE
        + line * a.estimate[i] * b.estimate[j]
        + bend * np.exp(-(apart**2) / 2)
        + member * np.exp(-distance / 2)
    )


def test_the_kernel_is_its_formula():
    a, b = points(4), points(3, seed=1)
    wanted = [[slow_kernel(a, b, i, j) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(kernel(a, b, VARIANCES), wanted, rtol=1e-12)


def test_a_prediction_is_the_conditional_of_the_joint_normal():
    seen, new = points(5), points(1, seed=2)
    outcomes = np.random.default_rng(3).normal(size=5)
    fitted = anchor(seen, outcomes, VARIANCES)
    both = Points(np.r_[seen.estimate, new.estimate], np.r_[seen.member, new.member])
    joint = kernel(both, both, VARIANCES) + VARIANCES[3] * np.eye(6)
    standard = (outcomes - fitted.middle) / fitted.spread
    y = np.linspace(-30, 30, 60001)
    stacked = np.c_[np.tile(standard, (len(y), 1)), y] - SLOPE * both.estimate
    density = np.exp(multivariate_normal(cov=joint).logpdf(stacked))
    mean = (density * y).sum() / density.sum()
    deviation = np.sqrt((density * (y - mean) ** 2).sum() / density.sum())
    found_mean, reach = fitted.predict(new)
    assert found_mean[0] == pytest.approx(fitted.middle + fitted.spread * mean, rel=1e-6)
    residual = standard - SLOPE * seen.estimate
    squares = residual @ np.linalg.inv(joint[:5, :5]) @ residual
    share = np.sqrt((DEGREES + squares) / (DEGREES + 4))
    quantile = student(DEGREES + 4).ppf(0.95)
    assert reach[0] == pytest.approx(fitted.spread * deviation * share * quantile, rel=1e-6)


def pair(points, i, j):
    return points[[i]], points[[j]]


def test_a_difference_is_that_of_the_joint_normal():
    """Of two new subsets' outcomes without noise, whose errors are correlated."""
    seen, new = points(5), points(2, seed=2)
    fitted = anchor(seen, np.random.default_rng(3).normal(size=5), VARIANCES)
    both = Points(np.r_[seen.estimate, new.estimate], np.r_[seen.member, new.member])
    joint = kernel(both, both, VARIANCES) + VARIANCES[3] * np.diag(np.r_[np.ones(5), 0, 0])
    gain = joint[5:, :5] @ np.linalg.inv(joint[:5, :5])
    residual = fitted.outcomes - SLOPE * seen.estimate
    mean = SLOPE * new.estimate + gain @ residual
    covariance = joint[5:, 5:] - gain @ joint[:5, 5:]
    apart = np.array([1, -1])
    squares = residual @ np.linalg.inv(joint[:5, :5]) @ residual
    share = np.sqrt((DEGREES + squares) / (DEGREES + 4)) * student(DEGREES + 4).ppf(0.95)
    found_mean, reach = fitted.difference(*pair(new, 0, 1))
    assert found_mean == pytest.approx(fitted.spread * (apart @ mean), rel=1e-8)
    wanted = fitted.spread * share * np.sqrt(apart @ covariance @ apart)
    assert reach == pytest.approx(wanted, rel=1e-8)
    predicted = fitted.predict(new)[0]
    assert found_mean == pytest.approx(predicted[0] - predicted[1], rel=1e-8)


def test_a_difference_turns_round_and_vanishes():
    new = points(2, seed=2)
    fitted = anchor(points(5), np.random.default_rng(3).normal(size=5), VARIANCES)
    there, back = fitted.difference(*pair(new, 0, 1)), fitted.difference(*pair(new, 1, 0))
    assert there == pytest.approx((-back[0], back[1])) and there[1] > 0
    assert fitted.difference(*pair(new, 0, 0)) == (0.0, 0.0)


def test_left_out_densities_are_those_of_fits_without_the_anchor():
    seen, outcomes = points(6), np.random.default_rng(1).normal(size=6)
    fitted = anchor(seen, outcomes, VARIANCES)
    for i in range(6):
        others = np.arange(6) != i
        joint = kernel(seen, seen, VARIANCES) + VARIANCES[3] * np.eye(6)
        residual = fitted.outcomes - SLOPE * seen.estimate
        gain = joint[i, others] @ np.linalg.inv(joint[np.ix_(others, others)])
        mean = gain @ residual[others]
        variance = joint[i, i] - gain @ joint[others, i]
        wanted = norm.logpdf(residual[i], mean, np.sqrt(variance))
        assert left_out_densities(fitted)[i] == pytest.approx(wanted, rel=1e-8)


def test_the_order_of_anchors_and_of_sources_does_not_matter():
    seen, new, outcomes = points(7), points(4, seed=5), np.random.default_rng(2).normal(size=7)
    first = anchor(seen, outcomes, VARIANCES).predict(new)
    turned, columns = np.arange(7)[::-1], np.array([3, 1, 5, 0, 2, 4])
    again = anchor(
        Points(seen.estimate[turned], seen.member[turned][:, columns]), outcomes[turned], VARIANCES
    ).predict(Points(new.estimate, new.member[:, columns]))
    np.testing.assert_allclose(first, again, rtol=1e-9)


def test_outcomes_in_other_units_are_predicted_in_those_units():
    """Up to the usual spread, which is in the units of log loss."""
    seen, new, outcomes = points(60), points(4, seed=5), np.random.default_rng(2).normal(size=60)
    mean, reach = anchor(seen, outcomes, VARIANCES).predict(new)
    shifted, same = anchor(seen, outcomes + 7, VARIANCES).predict(new)
    np.testing.assert_allclose(shifted, mean + 7, rtol=1e-9)
    np.testing.assert_allclose(same, reach, rtol=1e-9)


def test_relevance_has_one_total_however_many_sources():
    for count in (1, 3, 50):
        found = relevances(np.random.default_rng(0).normal(size=count))
        assert (found**2).sum() == pytest.approx((relevances(np.zeros(count)) ** 2).sum())
    found = relevances(np.array([0.0, 3.0, -3.0]))
    assert found[1] == found[2] > found[0] > 0


def planted(rng, count, *, sources=10, noise=0.1):
    """Outcomes that the estimate tells but for the effect of one source that it misjudges."""
    member = (rng.permuted(np.tile(np.arange(sources), (count, 1)), axis=1) < sources // 2) * 1.0
    effects = np.r_[2.0, -1.5, 1.0, np.zeros(sources - 3)]
    true = member @ (effects + np.r_[1.0, np.zeros(sources - 1)]) + noise * rng.normal(size=count)
    estimate = member @ effects
    scale = (estimate.mean(), estimate.std())
    return Points((estimate - scale[0]) / scale[1], member * relevances(effects)), true


def test_anchors_mend_what_the_estimate_misjudges():
    rng = np.random.default_rng(0)
    seen, new = planted(rng, 200)
    chosen = spread_out([seen], 8)
    fitted = anchor(seen[chosen], new[chosen], fit_variances([(seen[chosen], new[chosen])]))
    rest = np.setdiff1d(np.arange(200), chosen)
    mean, _ = fitted.predict(seen[rest])
    line = np.polyfit(seen.estimate[chosen], new[chosen], 1)
    straight = np.polyval(line, seen.estimate[rest])
    assert ((mean - new[rest]) ** 2).mean() < 0.5 * ((straight - new[rest]) ** 2).mean()


def test_intervals_cover_on_a_planted_world():
    hits = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        targets = [planted(rng, 40) for _ in range(4)]
        variances = fit_variances([(p[range(8)], y[:8]) for p, y in targets])
        for seen, outcomes in targets:
            fitted = anchor(seen[range(8)], outcomes[:8], variances)
            mean, reach = fitted.predict(seen[range(8, 40)])
            hits.append(np.abs(mean - outcomes[8:]) < reach)
    assert 0.85 < np.mean(hits) < 0.97


def test_intervals_of_differences_cover_on_a_planted_world():
    """The differences without the noise that the anchors have: of subsets that are alike, too."""
    hits = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen, outcomes = planted(rng, 60, noise=0.0)
        noisy = outcomes[:8] + 0.1 * rng.normal(size=8)
        fitted = anchor(seen[range(8)], noisy, fit_variances([(seen[range(8)], noisy)]))
        for i in range(8, 59):
            mean, reach = fitted.difference(*pair(seen, i, i + 1))
            hits.append(abs(mean - (outcomes[i] - outcomes[i + 1])) <= reach)
    assert 0.85 < np.mean(hits) < 0.97


def test_anchors_are_spread_out():
    """Of twins one is taken; of a crowd and a far one, the far one comes first."""
    crowd = np.zeros((5, 3))
    far = np.array([[2.0, 2.0, 0.0]])
    pool = Points(np.r_[np.full(5, 0.1), 3.0], np.r_[crowd, far])
    assert spread_out([pool], 2)[0] == 5
    chosen = spread_out([points(30), points(30, seed=9)], 6)
    assert len(set(chosen)) == 6 and chosen[:3] == spread_out([points(30), points(30, seed=9)], 3)


def test_greedy_choice_is_that_of_a_slow_loop():
    pools = [points(12), points(12, seed=4)]
    wanted: list[int] = []
    while len(wanted) < 4:
        gains = []
        for candidate in range(12):
            if candidate in wanted:
                gains.append(-np.inf)
                continue
            trial = [*wanted, candidate]
            gains.append(
                sum(
                    np.linalg.slogdet(
                        kernel(p[trial], p[trial], VARIANCES) + VARIANCES[3] * np.eye(len(trial))
                    )[1]
                    for p in pools
                )
            )
        wanted.append(int(np.argmax(gains)))
    assert spread_out(pools, 4) == wanted
