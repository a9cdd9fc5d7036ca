"""Shares: one for each source, at least 0, together 1."""

import pytest

from gradex.errors import GradexError
from gradex.selection.shares import require_shares


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
