"""What a source gives to the training: training rows only, as often as its share says."""

from collections import Counter

import pytest

from gradex.data.formats import content_id, to_row
from gradex.selection.portions import Portion, kind_of, mixture

ASKED = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}


def portion(name: str, count: int, share: float) -> Portion:
    return Portion(name, rows_of(count, mark=name), "chat", share)


def rows_of(count: int, *, mark: str = "") -> tuple:
    pairs = ({"prompt": f"{mark}{i}", "completion": "a"} for i in range(count))
    return tuple(to_row(pair, "prompt_completion") for pair in pairs)


def test_the_mixture_has_the_shares_and_takes_rows_of_a_source_equally_often():
    portions = [portion("a", 3, 0.8), portion("b", 50, 0.2)]
    a, b = mixture(portions, 100, seed=0)
    assert (len(a.rows), len(b.rows)) == (80, 20)
    assert sorted(Counter(row.id for row in a.rows).values()) == [26, 27, 27]
    assert len({row.id for row in b.rows}) == 20  # fewer than it has: each at most once


def test_every_pass_over_the_rows_is_a_whole_one():
    (a,) = mixture([portion("a", 5, 1.0)], 23, seed=0)
    ids = [row.id for row in a.rows]
    passes = [ids[i : i + 5] for i in range(0, 20, 5)]
    assert all(len(set(one)) == 5 for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_a_mixture_is_a_function_of_its_seed():
    portions = [portion("a", 40, 0.5), portion("b", 40, 0.5)]
    one, same, other = (mixture(portions, 30, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert one[0].rows != one[1].rows  # the sources are not drawn in step


def test_a_source_too_small_for_its_share_of_a_short_training_is_left_out():
    portions = [portion("a", 4, 0.999), portion("b", 4, 0.001)]
    assert [one.name for one in mixture(portions, 8, seed=0)] == ["a"]


SYSTEM = {"role": "system", "content": "s"}
KINDS = {
    "chat": [[ASKED, SAID], [SYSTEM, ASKED, SAID, ASKED, SAID]],
    "conversation": [[ASKED, SAID], [ASKED, ASKED, SAID]],
    "text": [[SAID], [{"role": "assistant", "content": "c"}]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_source_is_that_of_all_its_rows(kind):
    rows = tuple(to_row({"messages": turns}, "messages") for turns in KINDS[kind])
    assert kind_of(rows) == kind_of(rows[::-1]) == kind


def test_an_opening_answer_does_not_take_turns():
    rows = (to_row({"messages": [SAID, ASKED, SAID]}, "messages"),)
    assert kind_of(rows) == "conversation"


RECORDS = {
    "messages": {"messages": [ASKED, SAID], "answer": "b"},
    "text": {"text": "a\u2028b\r\nc"},
    "labelled_text": {"text": "a", "label": 1, "answer": "x"},
}


@pytest.mark.parametrize("format", RECORDS)
def test_a_record_reads_back_as_the_row(format):
    row = to_row(RECORDS[format], format)
    (record,) = Portion("a b", (row,), kind_of([row]), 1.0).records()
    again = to_row(record, format)
    assert again.id == row.id == record["id"] == content_id(again.messages, again.label)
    assert (record["source"], record["weight"]) == ("a b", 1.0)


def test_records_of_a_source_have_the_same_columns():
    """An answer that only some rows have would change the schema within a file."""
    pairs = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "answer": "d"}]
    rows = tuple(to_row(pair, "prompt_completion") for pair in pairs)
    records = list(Portion("a", rows, "chat").records())
    assert [list(record) for record in records] == [["messages", "source", "id"]] * 2
