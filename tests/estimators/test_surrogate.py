"""The surrogate: planted worlds come back, intervals hold, nothing of a left-out run leaks."""

from dataclasses import replace

import numpy as np
import pytest
from planted import store_of

from gradex.arguments import EstimatorArguments
from gradex.data.evidence import log_r2
from gradex.data.subsets import Subset, membership, sample_subsets
from gradex.data.true_runs import TrueRun, write_runs
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.protocol import Estimator
from gradex.estimators.surrogate import FEWEST, KERNELS, Surrogate, leave_one_out
from gradex.gradients.store import GradientStore

NAMES = list("abcdefgh")
each_kernel = pytest.mark.parametrize("kernel", sorted(KERNELS))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> GradientStore:
    """A surrogate reads its names alone."""
    row = np.ones((1, 2))
    folder = tmp_path_factory.mktemp("gradients") / "store"
    return store_of(folder, dict.fromkeys(NAMES, row), dict.fromkeys("st", row))


def draw(count: int, *, seed: int = 0) -> list[Subset]:
    return sample_subsets(NAMES, count, sizes=(0.25, 0.5, 0.75), seed=seed)


def additive(subsets: list[Subset], *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Two targets: every source multiplies each loss by a number of its own."""
    effects = np.random.default_rng(1).normal(size=(len(NAMES), 2)) / 2
    drawn = np.random.default_rng(seed).normal(size=(len(subsets), 2))
    return np.exp(membership(subsets, NAMES) @ effects + noise * drawn)


def runs_of(subsets: list[Subset], losses: np.ndarray, *, seed: int = 0) -> list[TrueRun]:
    """Test losses are twice the select losses."""

    def scores(row):
        return {
            t: {"select": {"loss": x}, "test": {"loss": 2 * x}}
            for t, x in zip("st", row, strict=True)
        }

    return [TrueRun(s, seed, scores(row)) for s, row in zip(subsets, losses.tolist(), strict=True)]


def test_an_additive_world_comes_back_from_ridge(store):
    seen, new = draw(40), draw(20, seed=1)
    errors = []
    for noise in (0.1, 0.01, 0):
        fitted = Surrogate(runs_of(seen, additive(seen, noise=noise)), kernel="ridge").fit(store)
        found = fitted.predict(new)
        errors.append(np.abs(np.log(found.value) - np.log(additive(new))).max())
    assert errors[0] > 5 * errors[1] > 5 * errors[2] and errors[2] < 0.01
    assert found.calibrated and found.targets == ["s", "t"]


def test_estimates_are_of_the_split_that_was_asked_for(store):
    seen = draw(40)
    runs = runs_of(seen, additive(seen))
    select, test = (
        Surrogate(runs, kernel="ridge").fit(store, targets=["t"], split=split).predict(seen)
        for split in ("select", "test")
    )
    np.testing.assert_allclose(test.value, 2 * select.value, rtol=1e-6)
    assert test.targets == ["t"]


def test_sources_that_work_only_together_are_seen_by_rbf_alone(store):
    """The loss doubles where one of a and b is there without the other: neither has an effect."""

    def apart(subsets):
        return np.exp2([[("a" in s) != ("b" in s)] * 2 for s in subsets])

    subsets = draw(120)
    seen, new = subsets[:80], subsets[80:]
    runs, explained = runs_of(seen, apart(seen)), {}
    for kernel in KERNELS:
        found = Surrogate(runs, kernel=kernel).fit(store).predict(new)
        explained[kernel] = log_r2(found.value[:, 0], apart(new)[:, 0])
    assert explained["rbf"] > 0.8 and explained["ridge"] < 0.2


@each_kernel
def test_the_order_of_sources_and_runs_says_nothing(store, kernel):
    seen, new = draw(20), draw(10, seed=1)
    runs = runs_of(seen, additive(seen, noise=0.3))
    found = Surrogate(runs, kernel=kernel).fit(store).predict(new)
    other = Surrogate(runs[::-1], kernel=kernel).fit(store, sources=NAMES[::-1]).predict(new)
    for side in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(found, side), getattr(other, side), rtol=1e-6)


@each_kernel
@pytest.mark.parametrize("count", [8, 24])
def test_intervals_hold_nine_in_ten(store, kernel, count):
    inside = []
    for world in range(60):
        seen, new = draw(count, seed=2 * world), draw(30, seed=2 * world + 1)
        fitted = Surrogate(runs_of(seen, additive(seen, noise=0.3, seed=world)), kernel=kernel)
        found = fitted.fit(store).predict(new)
        truth = additive(new, noise=0.3, seed=1000 + world)
        inside.append(((found.low <= truth) & (truth <= found.high)).mean())
        assert (found.low < found.value).all() and (found.value < found.high).all()
    assert 0.8 < np.mean(inside) < 0.98


def test_seeds_of_a_subset_are_one_subset(store):
    """Two seeds of every subset: were they left out one by one, the other seed would tell."""
    seen = draw(20)
    once = additive(seen, noise=0.3)
    twice = [
        *runs_of(seen, once * 1.5, seed=1),
        *runs_of(seen, once / 1.5, seed=2),
    ]
    found = Surrogate(twice).fit(store).predict(seen)
    wanted = Surrogate(runs_of(seen, once)).fit(store).predict(seen)
    for side in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(found, side), getattr(wanted, side), rtol=1e-6)


@each_kernel
def test_left_out_runs_are_predicted_by_the_others(store, kernel):
    subsets = draw(12)
    losses = additive(subsets, noise=0.2)
    found = leave_one_out(subsets, losses, kernel=kernel)
    for i in range(12):
        others = [j for j in range(12) if j != i]
        runs = runs_of([subsets[j] for j in others], losses[others])
        alone = Surrogate(runs, kernel=kernel).fit(store).predict([subsets[i]])
        np.testing.assert_allclose(found[[i]], alone.value, rtol=1e-6)


@each_kernel
def test_nothing_of_a_left_out_run_leaks(kernel):
    """Nor through the strength, nor through a second run of its subset."""
    subsets = draw(12)
    subsets[7] = subsets[3]
    losses = additive(subsets, noise=0.2)
    other = losses.copy()
    other[[3, 7]] *= 100
    before, after = (leave_one_out(subsets, each, kernel=kernel) for each in (losses, other))
    np.testing.assert_array_equal(before[[3, 7]], after[[3, 7]])
    assert not np.isclose(before[0], after[0]).any()


def test_too_few_other_runs_say_nothing():
    subsets = [frozenset(name) for name in NAMES[: FEWEST + 1]]
    losses = additive(subsets)
    assert np.isfinite(leave_one_out(subsets, losses, kernel="rbf")).all()
    assert np.isnan(leave_one_out(subsets[:-1], losses[:-1], kernel="rbf")).all()


def test_a_run_that_diverged_makes_its_target_unknown(store):
    subsets = draw(8)
    losses = additive(subsets)
    losses[2, 0] = np.inf
    found = leave_one_out(subsets, losses, kernel="ridge")
    assert np.isnan(np.delete(found[:, 0], 2)).all() and np.isfinite(found[:, 1]).all()
    with pytest.raises(GradexError, match="a loss of inf on 's'"):
        Surrogate(runs_of(subsets, losses)).fit(store)


def test_what_it_cannot_be_fitted_to_is_refused(store):
    few = draw(FEWEST - 1)
    same = [*runs_of(few, additive(few)), *runs_of(few, additive(few), seed=1)]
    for runs, count in (([], 0), (same, FEWEST - 1)):
        with pytest.raises(GradexError, match=rf"at least 4 subsets, found {count}; .*--runs"):
            Surrogate(runs).fit(store)
    subsets = draw(8)
    runs = runs_of(subsets, additive(subsets))
    with pytest.raises(GradexError, match="a true fine-tune: unknown source 'a'"):
        Surrogate(runs).fit(store, sources=NAMES[1:])
    with pytest.raises(GradexError, match="no loss of 't'"):
        Surrogate([replace(run, scores={"s": run.scores["s"]}) for run in runs]).fit(store)
    with pytest.raises(GradexError, match="unknown kernel 'cubic'; known are: ridge, rbf"):
        Surrogate(runs, kernel="cubic")
    with pytest.raises(GradexError, match="unknown source 'z'"):
        Surrogate(runs).fit(store).predict([frozenset("az")])


def test_the_flags_name_the_files_of_its_runs(tmp_path):
    subsets = draw(12)
    runs = runs_of(subsets, additive(subsets))
    for part in (0, 1):
        write_runs(tmp_path / f"{part}.json", runs[6 * part : 6 * part + 6], recipe="r")
    files = [str(tmp_path / f"{part}.json") for part in (0, 1)]
    made = make_estimator(EstimatorArguments(estimator="surrogate", runs=files))
    assert isinstance(made, Estimator) and made.runs == runs
    given = make_estimator(EstimatorArguments(estimator="surrogate", runs=files), runs=runs[:5])
    assert given.runs == runs[:5]
