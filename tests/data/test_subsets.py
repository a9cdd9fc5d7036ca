"""Subsets: what is written is what is read; samples are distinct, exhaustive and repeatable."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.data.subsets import (
    SAMPLED_TASKS,
    check_name,
    decode_name,
    encode_name,
    find_subsets,
    format_subset,
    membership,
    parse_subset,
    read_subsets,
    sample_subsets,
    write_subsets,
)
from gradex.errors import GradexError

NAMES = ["super_glue/record:1.0.2", "with space", "100%", "#1", "été", "a+b", "plain"]
TEN = [f"s{i}" for i in range(10)]


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_names_round_trip_as_one_safe_word(name):
    try:
        check_name(name, "here")
    except GradexError:
        return
    word = encode_name(name)
    assert decode_name(word) == name
    assert word.split() == [word]
    assert "/" not in word
    assert ":" not in word
    assert word not in (".", "..")
    assert not word.startswith(("#", "~"))


@pytest.mark.parametrize("name", [*NAMES, "a.b", ".hidden", "..a", "日本語", "a//b", "C:x"])
def test_good_names(name):
    assert check_name(name, "here") == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected printable text"),
        ("  ", "expected printable text"),
        ("a\tb", "expected printable text"),
        ("half \ud800", "expected printable text"),
        ("..", "would leave the store"),
        (".", "would leave the store"),
        ("a/../../b", "would leave the store"),
        ("a\\..\\b", "would leave the store"),
        ("/root", "would leave the store"),
        ("\\\\host", "would leave the store"),
        ("~user", "would leave the store"),
        ("x" * 201, "too long for a folder"),
        ("é" * 40, "too long for a folder"),
    ],
)
def test_refused_names(name, message):
    with pytest.raises(GradexError, match=f"^a.jsonl:3: .*{message}"):
        check_name(name, "a.jsonl:3")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1).map(frozenset), min_size=1))
def test_subset_files_round_trip(tmp_path_factory, subsets):
    path = tmp_path_factory.mktemp("subsets") / "folder" / "a.txt"
    assert write_subsets(path, subsets, NAMES) == path
    assert read_subsets(path, NAMES) == subsets


def test_a_line_follows_the_order_of_the_sources():
    assert format_subset(frozenset(NAMES[:3]), NAMES) == (
        "super_glue%2Frecord%3A1.0.2 with%20space 100%25"
    )
    assert format_subset(frozenset(NAMES[:3]), NAMES[::-1]).startswith("100%25 with%20space")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_subset_files_made_by_hand(end, mark, tmp_path):
    lines = ["# chosen by hand", "", "a  b a", "   # indented", "\tsuper_glue/record:1.0.2 ", "b"]
    path = tmp_path / "a.txt"
    path.write_bytes(mark + end.join(lines).encode())
    assert read_subsets(path, ["a", "b", NAMES[0]]) == [
        frozenset("ab"), frozenset([NAMES[0]]), frozenset("b"),
    ]  # fmt: skip


def test_unknown_names_are_told_with_their_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("# comment\na b\n\na c%20d\n")
    with pytest.raises(GradexError, match=r"a\.txt:4: unknown source 'c d'; known are: a, b"):
        read_subsets(path, iter(["a", "b"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# nothing\n\n", "found no subset"), (b"caf\xe9", r"not UTF-8 text \(byte 3\)")],
)
def test_files_without_subsets(content, message, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(GradexError, match=message):
        read_subsets(path, ["a"])


def test_missing_file(tmp_path):
    with pytest.raises(GradexError, match="no such file; expected one subset"):
        read_subsets(tmp_path / "a.txt", ["a"])


def test_parsing_many_names_is_quick():
    names = [f"source {i}" for i in range(5000)]
    line = format_subset(frozenset(names), names)
    assert parse_subset(line, names, "here") == frozenset(names)


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10])
def test_samples_can_be_exhaustive(size):
    room = math.comb(10, size)
    drawn = sample_subsets(TEN, room + 50, sizes=[size / 10], seed=0)
    assert len(drawn) == room
    assert set(drawn) == {frozenset(c) for c in combinations(TEN, size)}


def test_samples_are_distinct_and_go_round_the_sizes():
    drawn = sample_subsets(TEN, 60, sizes=[0.2, 0.5, 0.8], seed=1)
    assert len(set(drawn)) == 60
    assert [len(subset) for subset in drawn[:6]] == [2, 5, 8, 2, 5, 8]


def test_a_size_that_is_used_up_leaves_its_turn_to_the_others():
    drawn = sample_subsets(TEN, 30, sizes=[1.0, 0.3], seed=0)
    assert [len(subset) for subset in drawn] == [10] + [3] * 29


def test_the_seed_repeats_a_sample_and_a_longer_one_continues_it():
    assert (
        sample_subsets(TEN, 20, sizes=[0.5], seed=3)
        == (sample_subsets(TEN, 40, sizes=[0.5], seed=3)[:20])
    )
    assert sample_subsets(TEN, 20, sizes=[0.5], seed=4) != (
        sample_subsets(TEN, 20, sizes=[0.5], seed=3)
    )


def test_excluded_subsets_are_not_drawn():
    first = sample_subsets(TEN, 100, sizes=[0.5], seed=0)
    rest = sample_subsets(TEN, 1000, sizes=[0.5], seed=1, exclude=first)
    assert len(rest) == 252 - 100
    assert not set(first) & set(rest)


def test_excluded_subsets_of_other_sources_take_no_room():
    other = [frozenset({"x", name}) for name in TEN]
    assert len(sample_subsets(TEN, 100, sizes=[0.2], seed=0, exclude=other)) == 45


def test_a_small_fraction_is_one_source_at_least():
    assert all(len(s) == 1 for s in sample_subsets(TEN, 5, sizes=[0.001], seed=0))


def test_every_source_is_drawn_about_equally_often():
    drawn = sample_subsets(TEN, 200, sizes=[0.5], seed=0)
    assert membership(drawn, TEN).mean(0) == pytest.approx(0.5, abs=0.1)


def test_membership():
    matrix = membership([frozenset("ab"), frozenset("c")], ["a", "b", "c"])
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 0, 1]])


def test_drawn_subsets_are_kept_and_found_again():
    drawn = find_subsets(None, TEN, count=7, size=0.5, seed=2, store="demo")
    kept = SAMPLED_TASKS / "demo-n7-size0.5-seed2.txt"
    assert find_subsets(str(kept), TEN, count=3, size=0.1, seed=0, store="other") == drawn
