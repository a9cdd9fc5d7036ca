"""Compression: the basis of a plain SVD, for any view and shard size, kept once it is made."""

import numpy as np
import pytest
from planted import store_of, unit

from gradex.errors import GradexError
from gradex.gradients.compress import compress
from gradex.gradients.row_views import RowView, source_view
from gradex.gradients.statistics import source_sums

DIM = 30


@pytest.fixture
def sources():
    """Rows whose spectrum falls by a factor of 100 over the dims."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    fall = np.logspace(0, -2, DIM)
    return {n: rng.normal(size=(40 + i, DIM)) * fall @ turn for i, n in enumerate("abc")}


@pytest.fixture
def store(tmp_path, sources):
    return store_of(tmp_path / "store", sources, {"t": np.ones((2, DIM))})


def rows_of(sources, norm="unit"):
    rows = np.concatenate(list(sources.values()))
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / {"raw": 1, "unit": length, "soft": length + np.median(length)}[norm]


@pytest.mark.parametrize("norm", ["raw", "soft", "unit"])
def test_the_directions_of_a_plain_svd(store, sources, norm):
    found = compress(store, 4, view=source_view(store, list("abc"), norm))
    _, s, v = np.linalg.svd(rows_of(sources, norm), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.diag(v[:4] @ found.basis)), 1, atol=1e-4)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(4), atol=1e-12)
    assert found.kept == pytest.approx((s[:4] ** 2).sum() / (s**2).sum(), rel=1e-5)


def test_no_basis_of_the_size_keeps_more_than_it_says(store, sources):
    found = compress(store, 6)
    rows = rows_of(sources)
    kept = ((rows @ found.basis) ** 2).sum() / (rows**2).sum()
    assert found.kept == pytest.approx(kept, rel=1e-5)


def test_shards_do_not_matter(tmp_path, store, sources):
    other = store_of(tmp_path / "o", sources, {"t": np.ones((2, DIM))}, shard_rows=100)
    one, two = compress(store, 5).basis, compress(other, 5).basis
    np.testing.assert_allclose(one @ one.T, two @ two.T, atol=1e-8)


@pytest.mark.parametrize("dim", [7, 12, 100])
def test_the_rank_loses_nothing(tmp_path, dim):
    rng = np.random.default_rng(2)
    plane = rng.normal(size=(7, DIM))
    flat = {n: (rng.normal(size=(20, 7)) @ plane).astype(np.float32) for n in "ab"}
    found = compress(store_of(tmp_path / "s", flat, {"t": np.ones((2, DIM))}), dim)
    rows = unit(np.concatenate(list(flat.values())).astype(np.float64))
    inside = rows @ found.basis
    np.testing.assert_allclose(inside @ inside.T, rows @ rows.T, atol=1e-6)
    assert found.kept == pytest.approx(1, abs=1e-9)
    assert found.kept_of(rows) == pytest.approx(1, abs=1e-6)


def test_a_direction_that_no_row_has_is_not_kept(tmp_path):
    flat = {"a": np.eye(DIM)[:3]}
    found = compress(store_of(tmp_path / "s", flat, {"t": np.ones((2, DIM))}), 3)
    np.testing.assert_allclose(found.kept_of(np.eye(DIM)[2:4]), [1, 0], atol=1e-12)


def test_sums_are_those_of_compressed_rows_and_are_not_mixed(store, sources):
    view = RowView(basis=compress(store, 5).basis)
    whole = source_sums(store, "a").gram
    for found in (source_sums(store, "a", view=view), source_sums(store, "a", view=view)):
        np.testing.assert_allclose(found.gram, view.basis.T @ whole @ view.basis, atol=1e-10)
    other = RowView(basis=view.basis[:, ::-1].copy())
    np.testing.assert_allclose(
        source_sums(store, "a", view=other).gram,
        source_sums(store, "a", view=view).gram[::-1, ::-1],
        atol=1e-10,
    )


def test_kept_once_made(store):
    first = compress(store, 5)
    for name in "abc":
        for shard in store.shards("train", name):
            shard.file(".npy").unlink()
    np.testing.assert_array_equal(compress(store, 5).basis, first.basis)


def test_no_dimension_is_refused(store):
    with pytest.raises(GradexError, match="--compress: found 0"):
        compress(store, 0)
