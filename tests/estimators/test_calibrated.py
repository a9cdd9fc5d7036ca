"""Calibrated estimates: outcomes told again, strengths chosen by evidence, metrics, errors."""

from dataclasses import replace

import numpy as np
import pytest
from planted import store_of

from gradex.arguments import EstimatorArguments
from gradex.data.subsets import membership, sample_subsets
from gradex.data.true_runs import TrueRun
from gradex.errors import GradexError
from gradex.estimators import estimator_of, make_calibrated, with_calibration
from gradex.estimators.calibrated import choose, choose_anchors
from gradex.estimators.linear import Linear
from gradex.estimators.outcomes import unbounded
from gradex.estimators.reference import effects, reference_subsets, scale_of

NAMES = list("abcdefgh")


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    sources = {name: rng.normal(size=(12, 6)) + 2 * rng.normal(size=6) for name in NAMES}
    targets = {name: rng.normal(size=(9, 6)) + rng.normal(size=6) for name in ("s", "t")}
    return store_of(tmp_path / "store", sources, targets)


def outcome_of(store, subsets, *, noise=0.0):
    """Losses that follow the estimate on a bent scale, but for a source of their own."""
    fitted = Linear().fit(store)
    scale = scale_of(fitted.predict(reference_subsets(NAMES)).value)
    standard = scale.standard(fitted.predict(subsets).value) + membership(subsets, NAMES)[:, :1]
    noise = noise * np.random.default_rng(1).normal(size=standard.shape)
    return np.log1p(np.exp(standard + noise))


def runs_of(store, subsets, *, noise=0.0):
    losses = outcome_of(store, subsets, noise=noise)
    return [
        TrueRun(
            subset, 0,
            {
                t: {"select": {"loss": loss, "exact_match": float(np.exp(-loss))}}
                for t, loss in zip("st", row, strict=True)
            },
        )
        for subset, row in zip(subsets, losses.tolist(), strict=True)
    ]  # fmt: skip


@pytest.fixture
def subsets():
    return sample_subsets(NAMES, 40, sizes=[0.5], seed=3)


def test_outcomes_of_new_subsets_are_told(store, subsets):
    anchors = choose_anchors(Linear().fit(store), store.sources, subsets, 10)
    fitted = make_calibrated(EstimatorArguments(), runs_of(store, anchors)).fit(store)
    rest = [subset for subset in subsets if subset not in anchors]
    said, true = fitted.predict(rest), outcome_of(store, rest)
    assert said.calibrated and (said.low < said.value).all() and (said.value < said.high).all()
    missed = ((np.log(said.value) - np.log(true)) ** 2).sum(0)
    apart = ((np.log(true) - np.log(true).mean(0)) ** 2).sum(0)
    assert (1 - missed / apart > 0.6).all()
    assert ((said.low <= true) & (true <= said.high)).mean() > 0.85


def test_one_by_one_is_as_all_at_once(store, subsets):
    fitted = make_calibrated(EstimatorArguments(), runs_of(store, subsets[:8])).fit(store)
    whole = fitted.predict(subsets[8:])
    for row, subset in enumerate(subsets[8:]):
        alone = fitted.predict([subset])
        for side in ("value", "low", "high"):
            np.testing.assert_allclose(
                getattr(alone, side)[0], getattr(whole, side)[row], rtol=1e-8
            )


def test_a_metric_is_told_as_a_share_and_turned_around(store, subsets):
    runs = runs_of(store, subsets[:10])
    losses = make_calibrated(EstimatorArguments(), runs).fit(store).predict(subsets[10:])
    shares = make_calibrated(EstimatorArguments(), runs, metric="exact_match").fit(store)
    shares = shares.predict(subsets[10:])
    assert (shares.low > 0).all() and (shares.high < 1).all() and (shares.low < shares.high).all()
    assert np.corrcoef(losses.value[:, 0], shares.value[:, 0])[0, 1] < -0.8


def test_the_usual_strength_stays_unless_another_is_surely_better():
    rng = np.random.default_rng(0)
    usual = rng.normal(size=30)
    by_chance = usual + np.tile([1.0, -0.9], 15)
    assert by_chance.mean() > usual.mean()
    assert choose({"usual": usual, "other": by_chance}) == "usual"
    assert choose({"usual": usual, "other": usual + 1 + 0.1 * rng.normal(size=30)}) == "other"
    assert choose({"usual": usual, "other": usual - 1}) == "usual"


def test_a_strength_that_is_said_is_not_chosen_over(store, subsets):
    runs = runs_of(store, subsets[:8])
    said = make_calibrated(EstimatorArguments(lam=0.5), runs).fit(store)
    assert said.chosen_ == "lam 0.5" and list(said.candidates) == ["lam 0.5"]
    assert len(make_calibrated(EstimatorArguments(), runs).candidates) == 3


def test_estimates_of_another_split_go_the_same_way(tmp_path, store, subsets):
    """Test rows that are the select rows again give the same numbers."""
    import shutil

    from gradex.gradients.shards import Faults, write_shard
    from gradex.gradients.store import GradientStore

    shutil.copytree(store.path, tmp_path / "again")
    again = GradientStore.open(tmp_path / "again")
    for name in again.targets:
        for shard in again.shards("target", name):
            stored = np.load(shard.file(".npy"))
            table = np.load(shard.file(".rows.npy"))
            table["split"] = "test"
            write_shard(shard, {"": (stored, table)}, faults=Faults({}, {}), versions={})
    runs = runs_of(store, subsets[:8])
    select = make_calibrated(EstimatorArguments(), runs).fit(store)
    other = select.candidates[select.chosen_]().fit(again, split="test")
    through = select.view_.through(other).points(subsets)
    for ours, theirs in zip(through, select.view_.points(subsets), strict=True):
        np.testing.assert_allclose(ours.estimate, theirs.estimate, rtol=1e-6)


def test_summary_says_how_well_anchors_are_told_from_the_others(store, subsets):
    fitted = make_calibrated(EstimatorArguments(), runs_of(store, subsets[:12])).fit(store)
    found = fitted.summary()
    assert set(found["left_out_r2"]) == {"s", "t"}
    assert all(share > 0.5 for share in found["left_out_r2"].values())


def test_anchors_are_chosen_from_the_pool(store, subsets):
    fitted = Linear().fit(store)
    chosen = choose_anchors(fitted, store.sources, subsets, 6)
    assert len(set(chosen)) == 6 and set(chosen) <= set(subsets)


def test_rounding_is_no_difference_between_estimates(tmp_path):
    """Of sources with the same rows every subset is estimated alike, but for the last digits."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 6))
    targets = {"t": rng.normal(size=(9, 6))}
    fitted = Linear().fit(store_of(tmp_path / "same", dict.fromkeys(NAMES, rows), targets))
    value = fitted.predict(reference_subsets(NAMES)).value
    assert 0 < value.std() < 1e-12
    np.testing.assert_allclose(scale_of(value).standard(value), 0, atol=1e-12)
    np.testing.assert_allclose(effects(fitted, NAMES), 0, atol=1e-12)


def test_a_source_that_moves_the_estimate_has_the_larger_effect(store):
    fitted = Linear().fit(store)
    found = effects(fitted, store.sources)
    population = reference_subsets(store.sources)
    value = fitted.predict(population).value
    member = membership(population, store.sources)
    for source in range(len(NAMES)):
        inside = member[:, source] == 1
        difference = value[inside].mean(0) - value[~inside].mean(0)
        np.testing.assert_allclose(found[source] * value.std(0), difference, rtol=1e-8)


@pytest.mark.parametrize("metric, values", [("loss", [1e-4, 0.5, 8.0]), ("f1", [0.01, 0.5, 0.99])])
def test_outcomes_come_back_from_the_unbounded_scale(metric, values):
    scale = unbounded(metric)
    np.testing.assert_allclose(scale.back(scale.of(np.array(values))), values, rtol=1e-9)
    order = np.argsort(scale.of(np.array(values)))
    assert list(order) == ([0, 1, 2] if metric == "loss" else [2, 1, 0])


def test_nothing_is_told_of_anchors_that_came_to_the_same(store, subsets):
    """Their mean need not be exactly what they all are."""
    same = {t: {"select": {"loss": 0.1}} for t in "st"}
    runs = [TrueRun(subset, 0, same) for subset in subsets[:11]]
    fitted = make_calibrated(EstimatorArguments(lam=0.01), runs).fit(store)
    assert fitted.summary()["left_out_r2"] == {"s": None, "t": None}
    np.testing.assert_allclose(fitted.predict(subsets[:11]).value, 0.1, rtol=0.2)


def test_seeds_of_one_subset_are_no_anchors_of_their_own(store, subsets):
    runs = [replace(run, seed=seed) for run in runs_of(store, subsets[:3]) for seed in (0, 1)]
    with pytest.raises(GradexError, match="found 3 anchors, a calibration needs at least 4"):
        make_calibrated(EstimatorArguments(), runs)


def test_an_anchor_of_another_source_is_refused(store, subsets):
    elsewhere = replace(runs_of(store, subsets[:1])[0], subset=frozenset({"../x"}))
    runs = [elsewhere, *runs_of(store, subsets[1:8])]
    with pytest.raises(GradexError, match=r"an anchor: unknown source '\.\./x'; known are: a, b"):
        make_calibrated(EstimatorArguments(), runs).fit(store)


def test_too_few_anchors_and_a_metric_without_any_are_refused(store, subsets):
    with pytest.raises(GradexError, match="found 3 anchors, a calibration needs at least 4"):
        make_calibrated(EstimatorArguments(), runs_of(store, subsets[:3]))
    with pytest.raises(GradexError, match="--metric exact_match: only true fine-tunes"):
        estimator_of(EstimatorArguments(), None, metric="exact_match")
    runs = runs_of(store, subsets[:8])
    with pytest.raises(GradexError, match="has no f1 of 's' on select rows"):
        make_calibrated(EstimatorArguments(), runs, metric="f1").fit(store)


def test_without_a_calibration_estimates_stay_as_they_are(store, subsets):
    said, found = with_calibration(EstimatorArguments(), store)
    assert found is None and said.calibration == "none"
    plain = estimator_of(said, found).fit(store).predict(subsets)
    assert not plain.calibrated
    np.testing.assert_array_equal(plain.value, Linear().fit(store).predict(subsets).value)
