"""Sums over subsets: both ways are the product of membership and matrices, however related."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradex.estimators import subset_sums as module
from gradex.estimators.subset_sums import subset_sums

SOURCES, SIZE = 40, 15
WAYS = {"core": 0, "whichever is shorter": 10, "product": 10**9}
EITHER_WAY = pytest.mark.parametrize("difference", WAYS.values(), ids=list(WAYS))


def matrices(dtype=np.float64):
    return np.random.default_rng(0).normal(size=(SOURCES, SIZE)).astype(dtype)


def forward_step():
    """Five chosen sources, and each of the others in turn."""
    chosen = np.tile(np.arange(SOURCES) < 5, (SOURCES - 5, 1))
    return (chosen | np.eye(SOURCES, dtype=bool)[5:]).astype(float)


def swaps():
    inside, outside = forward_step()[:, :5], 1 - np.eye(SOURCES - 5)
    inside[np.arange(len(inside)), np.arange(len(inside)) % 5] = 0
    return np.c_[inside, outside]


SEARCHES = {
    "forward": forward_step(),
    "backward": 1 - np.eye(SOURCES),
    "swap": swaps(),
    "prefixes": np.tri(SOURCES),
    "single": np.eye(SOURCES)[3:4],
    "random": np.random.default_rng(1).integers(2, size=(70, SOURCES)).astype(float),
    "one after another": np.r_[forward_step(), 1 - np.eye(SOURCES), forward_step()],
    "weighted": np.random.default_rng(2).random((9, SOURCES)),
}


def all_sums(member, of):
    return np.concatenate(list(subset_sums(member, of)))


@EITHER_WAY
@pytest.mark.parametrize("search", SEARCHES)
def test_sums_are_the_product(search, difference, monkeypatch):
    monkeypatch.setattr(module, "DIFFERENCE", difference)
    monkeypatch.setattr(module, "BLOCK_SUBSETS", 16)
    monkeypatch.setattr(module, "CACHE_BYTES", 8 * SIZE * 3)
    member = SEARCHES[search]
    np.testing.assert_allclose(all_sums(member, matrices()), member @ matrices(), atol=1e-12)


@given(member=arrays(bool, st.tuples(st.integers(1, 20), st.just(SOURCES))))
@settings(deadline=None, max_examples=50)
def test_any_memberships(member):
    member = member.astype(float)
    np.testing.assert_allclose(all_sums(member, matrices()), member @ matrices(), atol=1e-12)


@EITHER_WAY
def test_single_precision_is_that_of_the_matrices_alone(difference, monkeypatch):
    """By differences nothing is lost beside it; the product is summed in single precision."""
    monkeypatch.setattr(module, "DIFFERENCE", difference)
    single, member = matrices(np.float32), SEARCHES["backward"]
    found = all_sums(member, single)
    assert found.dtype == np.float64
    within = 1e-12 if difference == 0 else 1e-5
    np.testing.assert_allclose(found, member @ single.astype(float), atol=within)


@EITHER_WAY
def test_what_the_caller_overwrites_is_not_read_again(difference, monkeypatch):
    monkeypatch.setattr(module, "DIFFERENCE", difference)
    monkeypatch.setattr(module, "BLOCK_SUBSETS", 4)
    kept, own = [], matrices()
    for sums in subset_sums(forward_step(), own):
        kept.append(sums.copy())
        sums[:] = np.nan
    np.testing.assert_allclose(np.concatenate(kept), forward_step() @ matrices(), atol=1e-12)
    np.testing.assert_array_equal(own, matrices())


def test_related_subsets_take_the_shorter_way(monkeypatch):
    """A step of a search adds as many matrices as subsets, beside their core's."""
    added = []
    whole = module._add

    def counting(total, weights, of):
        added.append(np.count_nonzero(weights))
        whole(total, weights, of)

    monkeypatch.setattr(module, "_add", counting)
    all_sums(SEARCHES["forward"], matrices())
    assert sum(added) == len(SEARCHES["forward"]) + 5
    added.clear()
    all_sums(SEARCHES["random"], matrices())
    assert added == []
