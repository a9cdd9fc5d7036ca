"""Intervals of gains: agreement with a slow loop, symmetry, rows, points, coverage, None."""

import numpy as np
import pytest
from planted import store_of
from scipy.stats import t as student

from gradex.data.subsets import sample_subsets
from gradex.data.true_runs import TrueRun
from gradex.estimators.averaged import Averaged
from gradex.estimators.baselines import Constant, influence
from gradex.estimators.calibrated import Calibrated
from gradex.estimators.flow import Flow
from gradex.estimators.gains import gain_interval
from gradex.estimators.linear import Linear
from gradex.estimators.protocol import members
from gradex.estimators.regression import target_rows
from gradex.gradients.shards import Faults, write_shard

NAMES = list("abcdef")
DIM = 5
BEFORE, AFTER = frozenset("ab"), frozenset("abd")
PAIRS = [(BEFORE, AFTER), (frozenset("a"), frozenset("c")), (frozenset("abcdef"), frozenset("bf"))]


def gradients(seed, *, scale=1.0):
    rng = np.random.default_rng(seed)
    sources = {name: rng.normal(size=(9, DIM)) + rng.normal(size=DIM) for name in NAMES}
    targets = {name: scale * rng.normal(size=(rows, DIM)) for name, rows in (("s", 8), ("t", 20))}
    return sources, targets


@pytest.fixture
def store(tmp_path):
    """With an earlier point."""
    store = store_of(tmp_path / "late", *gradients(0))
    store_of(tmp_path / "late" / "points" / "10", *gradients(1, scale=30.0))
    return store


@pytest.fixture
def calibrated(store):
    subsets = sample_subsets(NAMES, 10, sizes=[0.5], seed=3)
    values = Linear().fit(store).predict(subsets).value
    losses = np.log1p(np.exp(3 * (values - values.mean(0)) / values.std(0)))
    runs = [
        TrueRun(s, 0, {t: {"select": {"loss": v}} for t, v in zip("st", row, strict=True)})
        for s, row in zip(subsets, losses.tolist(), strict=True)
    ]
    return Calibrated({"linear": lambda: Averaged(Linear)}, runs).fit(store)


KINDS = {
    "linear": Linear,
    "flow, raw": lambda: Flow(t=5.0, target_norm="raw"),
    "compressed": lambda: Linear(compress=3),
    "averaged": lambda: Averaged(Linear),
}
ANY = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def by_hand(changes, factors):
    """Of single rows' changes, a target each."""
    mean = sum(f * np.mean(c) for f, c in zip(factors, changes, strict=True))
    error = sum(f**2 * np.var(c, ddof=1) / len(c) for f, c in zip(factors, changes, strict=True))
    reach = student(min(map(len, changes)) - 1).ppf(0.95) * np.sqrt(error)
    return mean - reach, mean + reach


def test_a_slow_loop_over_rows(store):
    fitted = Linear().fit(store)
    found = gain_interval(fitted, store, ["t", "s"], weights=[3.0, 1.0])(BEFORE, AFTER)
    z, other = fitted.displacements(members([BEFORE, AFTER], NAMES))
    changes = [
        [row @ z - row @ other for row in target_rows(store.target(name, "select"), "soft")]
        for name in "ts"
    ]
    assert found == pytest.approx(by_hand(changes, [0.75, 0.25]), rel=1e-9)


def test_a_slow_loop_over_rows_and_points(store):
    fitted, changes = Averaged(Linear).fit(store), {"s": 0, "t": 0}
    own = fitted.scales_[0].spread
    for one, scale, at in zip(
        fitted.fitted_, fitted.scales_, [store, *store.points()], strict=True
    ):
        z, other = one.displacements(members([BEFORE, AFTER], NAMES))
        for column, name in enumerate("st"):
            rows = target_rows(at.target(name, "select"), "soft")
            changes[name] += rows @ (z - other) * own[column] / scale.spread[column] / 2
    found = gain_interval(fitted, store, ["t", "s"])(BEFORE, AFTER)
    assert found == pytest.approx(by_hand([changes["t"], changes["s"]], [0.5, 0.5]), rel=1e-9)


def test_rows_that_are_not_good_at_all_points_are_left_out(store):
    other = store.points()[0]
    shard = other.shards("target", "t")[0]
    table, stored = np.load(shard.file(".rows.npy")), np.load(shard.file(".npy"))
    table["ok"][2] = False
    write_shard(shard, {"": (stored, table)}, faults=Faults({}, {}), versions={})
    fitted = Averaged(Linear).fit(store)
    low, high = gain_interval(fitted, store, ["t"])(BEFORE, AFTER)
    values = fitted.predict([BEFORE, AFTER]).value[:, 1]
    assert low < values[0] - values[1] < high


@ANY
@pytest.mark.parametrize("pair", PAIRS)
def test_the_middle_is_the_gain_of_the_values(kind, pair, store):
    fitted = kind().fit(store)
    values = fitted.predict(pair).value
    gains = values[0] - values[1]
    for targets, weights in ((["s"], None), (["t", "s"], [1.0, 3.0])):
        low, high = gain_interval(fitted, store, targets, weights=weights)(*pair)
        columns = ["st".index(name) for name in targets]
        wanted = np.average(gains[columns], weights=weights)
        assert low < high and (low + high) / 2 == pytest.approx(wanted, rel=1e-6)


@ANY
def test_there_and_back_again(kind, store):
    interval = gain_interval(kind().fit(store), store, ["s", "t"])
    for before, after in PAIRS:
        low, high = interval(before, after)
        assert interval(after, before) == pytest.approx((-high, -low), rel=1e-9)
        assert interval(before, before) == pytest.approx((0, 0), abs=1e-12)


@ANY
def test_values_in_units_of_their_spread(kind, store):
    fitted = kind().fit(store)
    alone = [np.array(gain_interval(fitted, store, [name])(BEFORE, AFTER)) for name in "st"]
    for side, name in enumerate("st"):
        found = gain_interval(fitted, store, [name], spreads=[4.0])(BEFORE, AFTER)
        np.testing.assert_allclose(found, alone[side] / 4, rtol=1e-9)
    both = gain_interval(fitted, store, ["s", "t"], spreads=[4.0, 2.0])(BEFORE, AFTER)
    middle = (alone[0].mean() / 4 + alone[1].mean() / 2) / 2
    assert np.mean(both) == pytest.approx(middle, rel=1e-9)


def test_more_rows_shrink_it_with_their_root(tmp_path):
    sources, targets = gradients(0)
    widths = []
    for times in (10, 40):
        repeated = {name: np.tile(rows, (times, 1)) for name, rows in targets.items()}
        store = store_of(tmp_path / str(times), sources, repeated, shard_rows=1000)
        low, high = gain_interval(Linear().fit(store), store, ["s", "t"])(BEFORE, AFTER)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.03)


def test_gains_over_all_rows_are_covered(tmp_path):
    """120 targets whose rows are drawn from one population, of which the gain is known."""
    rng = np.random.default_rng(0)
    sources, _ = gradients(0)
    slope = rng.normal(size=DIM)
    targets = {f"t{i}": slope + rng.standard_t(5, size=(10, DIM)) for i in range(120)}
    store = store_of(tmp_path / "many", sources, targets, shard_rows=16)
    fitted = Linear(target_norm="raw").fit(store)
    z, other = fitted.displacements(members([BEFORE, AFTER], NAMES))
    gain, hits = slope @ (z - other), []
    for name in targets:
        low, high = gain_interval(fitted, store, [name])(BEFORE, AFTER)
        hits.append(low <= gain <= high)
    assert 0.83 < np.mean(hits) < 0.97


@pytest.mark.parametrize("pair", PAIRS)
def test_calibrated_gains_are_those_of_the_values(calibrated, store, pair):
    values = calibrated.predict(pair).value
    for targets in ("s", "t", "ts"):
        weights = [1.0, 3.0][: len(targets)]
        interval = gain_interval(calibrated, store, list(targets), weights=weights)
        low, high = interval(*pair)
        gains = [np.subtract(*values[:, "st".index(name)]) for name in targets]
        assert low < np.average(gains, weights=weights) < high
        assert interval(*pair[::-1]) == pytest.approx((-high, -low), rel=1e-6)
        assert interval(pair[0], pair[0]) == pytest.approx((0, 0), abs=1e-9)


def test_calibrated_gains_come_back_from_the_scale_of_the_outcomes(calibrated, store):
    gain, low, high = calibrated.gains(BEFORE, AFTER)[:, 0]
    values = calibrated.predict([BEFORE, AFTER]).value[:, 0]
    assert gain == pytest.approx(values[0] - values[1], rel=1e-8)
    one, points = calibrated.anchored_[0], calibrated.view_.points([BEFORE, AFTER])[0]
    apart, reach = one.difference(points[[0]], points[[1]])
    middle = one.predict(points)[0].mean()
    ends = [
        np.logaddexp(0, middle + far / 2) - np.logaddexp(0, middle - far / 2)
        for far in (apart - reach, apart + reach)
    ]
    assert (low, high) == pytest.approx(tuple(ends), rel=1e-8)
    assert (gain_interval(calibrated, store, ["s"])(BEFORE, AFTER)) == pytest.approx((low, high))


@pytest.mark.parametrize("make", [Constant, influence])
def test_others_know_no_such_error(make, store):
    assert gain_interval(make().fit(store), store, ["t"]) is None
    assert gain_interval(Averaged(Constant).fit(store), store, ["t"]) is None


def test_a_single_row_tells_no_interval(tmp_path):
    sources, targets = gradients(0)
    store = store_of(tmp_path / "s", sources, targets | {"one": targets["t"][:1]})
    fitted = Linear().fit(store)
    assert gain_interval(fitted, store, ["t", "one"]) is None
    assert gain_interval(fitted, store, ["t"]) is not None
