"""Shares of the mix: they sum to one, keep to the bounds and to the proportions between these."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.errors import GradexError
from gradex.selection.shares import apportion, clipped_shares, require_shares


def test_without_bounds_they_are_those_of_the_rows():
    assert clipped_shares({"a": 30, "b": 10}) == {"a": 0.75, "b": 0.25}


def test_what_is_cut_off_goes_to_the_others_by_their_rows():
    shares = clipped_shares({"a": 70, "b": 20, "c": 10}, high=0.4)
    assert shares == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2})
    shares = clipped_shares({"a": 60, "b": 30, "c": 10}, low=0.19)
    assert shares == pytest.approx({"a": 0.54, "b": 0.27, "c": 0.19})


sizes = st.dictionaries(st.text(min_size=1), st.integers(1, 10**6), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(sizes=sizes, below=st.floats(0, 1), above=st.floats(0, 1))
def test_laws(sizes, below, above):
    even = 1 / len(sizes)
    low, high = below * even, even + above * (1 - even)
    shares = clipped_shares(sizes, low=low, high=high)
    assert list(shares) == list(sizes)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
    assert all(low - 1e-9 <= share <= high + 1e-9 for share in shares.values())
    between = [n for n, share in shares.items() if low + 1e-6 < share < high - 1e-6]
    for name in between:
        ratio = shares[name] / sizes[name]
        assert ratio == pytest.approx(shares[between[0]] / sizes[between[0]], rel=1e-6)
    for one in sizes:
        for other in sizes:
            assert sizes[one] > sizes[other] or shares[one] <= shares[other] + 1e-12


@settings(max_examples=50, deadline=None)
@given(sizes=sizes)
def test_the_tightest_bounds_leave_one_answer(sizes):
    even = 1 / len(sizes)
    for bounds in ({"low": even}, {"high": even}, {"low": even, "high": even}):
        assert clipped_shares(sizes, **bounds) == pytest.approx(dict.fromkeys(sizes, even))


def test_bounds_that_cannot_be_are_refused():
    for bounds, says in (
        ({"low": 0.6, "high": 0.5}, "above --max_share"),
        ({"low": 0.6}, "2 shares of at least 0.6"),
        ({"high": 0.4}, "2 shares of at most 0.4"),
    ):
        with pytest.raises(GradexError, match=says):
            clipped_shares({"a": 1, "b": 2}, **bounds)


def test_shares_may_be_rounded():
    require_shares({"a": 1 / 3, "b": 0.6666667, "c": 0}, "abc", where="file")


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"a": 0.5, "b": 0.5}, "no share of 'c'"),
        ({"a": 0.5, "b": 0.6, "c": -0.1}, "'c' is -0.1"),
        ({"a": 0.5, "b": 0.5, "c": float("nan")}, "'c' is nan"),
        ({"a": 0.5, "b": 0.5, "c": "0"}, "'c' is '0'"),
        ({"a": 0.5, "b": 0.5, "c": 1e-5}, "sum to 1.00001, expected 1"),
    ],
)
def test_what_is_no_share_of_each_source(shares, says):
    with pytest.raises(GradexError, match=f"^file: .*{says}"):
        require_shares(shares, "abc", where="file")


@pytest.mark.parametrize("total", [0, 1, 7, 100, 3201])
def test_parts_sum_to_the_total_and_none_is_a_whole_row_off(total):
    rng = np.random.default_rng(0)
    for shares in ([1.0], [0.5, 0.5], [1 / 3] * 3, [0.0, 1.0], *rng.dirichlet(np.ones(9), 20)):
        counts = apportion(list(shares), total)
        assert sum(counts) == total
        assert np.abs(np.array(counts) - np.array(shares) * total).max() < 1


def test_a_source_of_no_share_gets_no_row():
    assert apportion([0.0, 0.7, 0.0, 0.3], 11)[::2] == [0, 0]
