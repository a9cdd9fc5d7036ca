"""What linear and flow share: laws of the sums, the norms, the memory, the errors."""

import numpy as np
import pytest
from planted import store_of

from gradex.arguments import EstimatorArguments
from gradex.errors import GradexError
from gradex.estimators import make_estimator, packed_sums
from gradex.estimators.flow import Flow
from gradex.estimators.linear import Linear
from gradex.estimators.packed import pack
from gradex.gradients.row_views import require_row_norm

DIM = 6
SUBSETS = [frozenset(s) for s in ("a", "b", "ab", "cd", "abcd")]
BOTH = pytest.mark.parametrize("kind", [Linear, Flow])
NORMS = ("raw", "soft", "unit")


@pytest.fixture
def sources():
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(size=(46, 1))
    rows = rng.normal(size=(46, DIM)) * lengths
    return dict(zip("abcd", np.split(rows, [9, 29, 34]), strict=True))


@pytest.fixture
def targets():
    rng = np.random.default_rng(1)
    return {t: rng.normal(size=(7, DIM)) * rng.lognormal(size=(7, 1)) for t in "st"}


@pytest.fixture
def store(tmp_path, sources, targets):
    return store_of(tmp_path / "store", sources, targets)


def values(estimator, store, subsets=SUBSETS):
    return estimator.fit(store).predict(subsets).value


@BOTH
def test_batched_equals_one_by_one(kind, store):
    fitted = kind().fit(store)
    one_by_one = np.concatenate([fitted.predict([subset]).value for subset in SUBSETS])
    np.testing.assert_allclose(fitted.predict(SUBSETS).value, one_by_one, rtol=1e-8)


@BOTH
def test_blocks_do_not_change_the_estimates(kind, store, monkeypatch):
    whole = values(kind(), store)
    monkeypatch.setattr("gradex.estimators.subset_sums.BLOCK_SUBSETS", 2)
    np.testing.assert_allclose(values(kind(), store), whole, rtol=1e-10)


@BOTH
@pytest.mark.parametrize("compress", [None, 4])
@pytest.mark.parametrize("bytes_of_doubles", [2**31, 0], ids=["double", "single"])
def test_sums_by_differences_give_the_same_estimates(
    kind, compress, bytes_of_doubles, store, monkeypatch
):
    monkeypatch.setattr(packed_sums, "DOUBLE_BYTES", bytes_of_doubles)
    fitted, found = kind(compress=compress).fit(store), []
    for difference in (0, 10**9):
        monkeypatch.setattr("gradex.estimators.subset_sums.DIFFERENCE", difference)
        found.append(fitted.predict(SUBSETS).value)
    within = 1e-10 if bytes_of_doubles else 1e-5
    np.testing.assert_allclose(*found, rtol=within)


@BOTH
def test_order_of_rows_shards_and_sources_do_not_matter(kind, tmp_path, store, sources, targets):
    shuffled = {name: np.random.default_rng(9).permutation(sources[name]) for name in "dbca"}
    other = store_of(tmp_path / "other", shuffled, targets, shard_rows=3)
    np.testing.assert_allclose(values(kind(), other), values(kind(), store), rtol=1e-8)


@BOTH
def test_displacements_are_what_predicts(kind, store):
    fitted = kind().fit(store)
    member = np.array([[n in subset for n in "abcd"] for subset in SUBSETS], dtype=np.float64)
    z = fitted.displacements(member)
    np.testing.assert_allclose(fitted.loss_ + z @ fitted.slope_.T, fitted.predict(SUBSETS).value)


def seen(rows, norm, middle):
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / {"raw": 1.0, "unit": length, "soft": length + middle}[norm]


@pytest.mark.parametrize("target_norm", NORMS)
@pytest.mark.parametrize("source_norm", NORMS)
def test_norms_equal_the_slow_way(store, sources, targets, source_norm, target_norm):
    middle = np.median(np.linalg.norm(np.concatenate(list(sources.values())), axis=1))
    rows = {name: seen(g, source_norm, middle) for name, g in sources.items()}
    everything = np.concatenate(list(rows.values()))
    tau = (everything**2).sum() / len(everything)
    wanted = []
    for subset in SUBSETS:
        g = np.concatenate([rows[name] for name in subset])
        z = -np.linalg.solve(g.T @ g / len(g) + 0.1 * tau * np.eye(DIM), g.mean(0))
        line = []
        for target in targets.values():
            m = np.median(np.linalg.norm(target, axis=1))
            in_loss = 1 if target_norm == "raw" else m
            line.append(1.5 + in_loss * seen(target, target_norm, m).mean(0) @ z)
        wanted.append(line)
    # One after another on one store: kept sums of one kind are never taken for another's.
    estimator = Linear(lam=0.1, source_norm=source_norm, target_norm=target_norm)
    Linear(lam=0.1).fit(store)
    np.testing.assert_allclose(values(estimator, store), wanted, rtol=1e-5)


def test_made_from_the_flags():
    flags = EstimatorArguments(estimator="flow", t=5.0, compress=2)
    made = make_estimator(flags).make()
    assert isinstance(made, Flow) and (made.t, made.compress) == (5.0, 2)
    for wrong in ({"t": 0.0}, {"compress": 0}):
        with pytest.raises(GradexError, match=f"--{next(iter(wrong))}: found 0"):
            EstimatorArguments(**wrong)


def test_an_unknown_norm_is_refused():
    with pytest.raises(GradexError, match="known are: raw, soft, unit"):
        require_row_norm("hard")


@BOTH
def test_compressed_to_all_dims_nothing_changes(kind, store):
    np.testing.assert_allclose(values(kind(compress=DIM), store), values(kind(), store), rtol=1e-8)


@BOTH
def test_compressed_to_the_rank_nothing_changes(kind, tmp_path, sources, targets):
    plane = np.random.default_rng(4).normal(size=(3, DIM))
    flat = {name: g[:, :3] @ plane for name, g in sources.items()}
    store = store_of(tmp_path / "flat", flat, targets)
    np.testing.assert_allclose(values(kind(compress=3), store), values(kind(), store), rtol=1e-5)


def test_beyond_the_memory_rows_are_compressed_and_it_is_said(store, monkeypatch, caplog):
    whole = values(Linear(), store)
    monkeypatch.setattr(packed_sums, "MOST_BYTES", 4 * 4 * 15)  # 4 sources, dims 5: 15 numbers each
    with caplog.at_level("INFO"):
        fitted = Linear().fit(store)
    assert fitted.sums_.shape[1] == 5 and fitted.slope_.shape[1] == DIM
    assert "compressed to 5 dims" in caplog.text and "squared norm is kept" in caplog.text
    close = fitted.predict(SUBSETS).value
    assert not np.allclose(close, whole, rtol=1e-6)
    assert np.corrcoef(close.ravel(), whole.ravel())[0, 1] > 0.8


def test_single_precision_where_double_takes_too_much(store, monkeypatch, caplog):
    whole = values(Linear(), store)
    monkeypatch.setattr(packed_sums, "DOUBLE_BYTES", 100)
    with caplog.at_level("INFO"):
        fitted = Linear().fit(store)
    assert fitted.grams_.dtype == np.float32 and "single precision" in caplog.text
    np.testing.assert_allclose(fitted.predict(SUBSETS).value, whole, rtol=1e-4)


@BOTH
def test_a_source_of_zeros_is_named(kind, tmp_path, sources, targets):
    store = store_of(tmp_path / "s", sources | {"still": np.zeros((4, DIM))}, targets)
    with pytest.raises(GradexError, match="source 'still' are all zero"):
        kind().fit(store)
    kind().fit(store, sources=list("abcd"))


def test_a_regression_without_a_solution_names_the_sources(tmp_path, targets):
    """Three directions of six, and no ridge to speak of."""
    rows = {name: np.eye(DIM)[i : i + 2] for i, name in enumerate("abc")}
    fitted = Linear(lam=1e-300).fit(store_of(tmp_path / "s", rows, targets))
    fitted.grams_ -= 1e-9 * pack(np.eye(DIM))  # as rounding would
    with pytest.raises(GradexError, match=r"gradients of a, c leave directions open.*--lam"):
        fitted.predict([frozenset("ac")])
