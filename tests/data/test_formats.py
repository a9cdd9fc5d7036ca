"""Every format ends in the same conversation; ids are the content; bad rows say why."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.data.formats import (
    EXTRA_CELLS,
    FORMATS,
    BadRow,
    Row,
    content_id,
    require_columns,
    sniff,
    to_row,
)
from gradex.errors import GradexError

ASKED, TOLD = "What is 2+2?", "4"
# One conversation in every format that can hold it.
SAME = {
    "messages": {"messages": [
        {"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD},
    ]},
    "sharegpt": {"conversations": [
        {"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD},
    ]},
    "prompt_completion": {"prompt": ASKED, "completion": TOLD},
    "alpaca": {"instruction": ASKED, "input": "", "output": TOLD},
}  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
messages = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), max_size=4)


@pytest.mark.parametrize("format", SAME)
def test_one_conversation_is_one_row_in_every_format(format):
    row = to_row(SAME[format], format)
    assert row.messages == (("user", ASKED), ("assistant", TOLD))
    assert row.prompt == (("user", ASKED),)
    assert row.completion == TOLD
    assert row.id == to_row(SAME["messages"], "messages").id


@pytest.mark.parametrize("format", FORMATS)
def test_sniffing_finds_the_format_of_its_columns(format):
    needed, _ = FORMATS[format]
    assert sniff([*needed, "id", "source"], "here") == format


def test_sniffing_names_what_it_found_and_what_it_knows():
    message = r"a\.csv:2: found the columns inputs, targets, expected .*prompt_completion \(prompt"
    with pytest.raises(GradexError, match=message):
        sniff(["targets", "inputs"], "a.csv:2")


def test_a_missing_column_is_named():
    with pytest.raises(GradexError, match=r"column 'completion' is missing for .*; found prompt; "):
        require_columns({"prompt": "a"}, "prompt_completion", "a.csv:2")
    with pytest.raises(GradexError, match="unknown format 'flan'; known are: auto, messages"):
        require_columns({}, "flan", "here")


def test_prompt_and_completion_as_messages():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    wanted = (("system", "Be brief."), ("user", ASKED), ("assistant", TOLD))
    for completion in (TOLD, [{"role": "assistant", "content": TOLD}]):
        record = {"prompt": prompt, "completion": completion}
        assert to_row(record, "prompt_completion").messages == wanted


def test_alpaca_with_everything():
    record = {
        "instruction": "Add.", "input": "2, 2", "output": 4, "system": "Be brief.",
        "history": [["Hi", "Hello"], ("How are you?", "Well")],
    }  # fmt: skip
    assert to_row(record, "alpaca").messages == (
        ("system", "Be brief."),
        ("user", "Hi"), ("assistant", "Hello"),
        ("user", "How are you?"), ("assistant", "Well"),
        ("user", "Add.\n\n2, 2"), ("assistant", "4"),
    )  # fmt: skip


@pytest.mark.parametrize("absent", [None, "", float("nan")])
def test_alpaca_parts_that_are_not_there(absent):
    record = {**SAME["alpaca"], "input": absent, "system": absent, "history": None}
    assert to_row(record, "alpaca").messages == (("user", ASKED), ("assistant", TOLD))


def test_alpaca_with_a_number_as_input():
    record = {"instruction": "Double", "input": 2, "output": 4}
    assert to_row(record, "alpaca").messages[0] == ("user", "Double\n\n2")


@pytest.mark.parametrize("history", ["Hi", 3, [["Hi"]], ["Hi"], [["a", "b", "c"]]])
def test_alpaca_history_that_is_no_pairs(history):
    with pytest.raises(BadRow, match="history is not pairs"):
        to_row({**SAME["alpaca"], "history": history}, "alpaca")


@pytest.mark.parametrize("human", ["human", "user", "Human"])
@pytest.mark.parametrize("gpt", ["gpt", "chatgpt", "assistant", "bot", "model"])
def test_sharegpt_roles(human, gpt):
    turns = [{"from": human, "value": ASKED}, {"from": gpt, "value": TOLD}]
    assert to_row({"conversations": turns}, "sharegpt").messages[0] == ("user", ASKED)


def test_sharegpt_has_one_system_message():
    turns = SAME["sharegpt"]["conversations"]
    beside = to_row({"conversations": turns, "system": "Be brief."}, "sharegpt")
    within = [{"from": "system", "value": "Be brief."}, *turns]
    both = to_row({"conversations": within, "system": "Be kind."}, "sharegpt")
    assert beside.messages == both.messages
    assert beside.messages[0] == ("system", "Be brief.")


@pytest.mark.parametrize("role", ["from", "role"])
@pytest.mark.parametrize("content", ["value", "content"])
def test_sharegpt_with_the_keys_of_messages(role, content):
    """Also where a table gives every turn all keys."""
    turns = [{role: "human", content: ASKED}, {role: "gpt", content: TOLD}]
    wanted = to_row(SAME["sharegpt"], "sharegpt")
    assert to_row({"conversations": turns}, "sharegpt") == wanted
    nothing = dict.fromkeys(("from", "role", "value", "content"))
    padded = [nothing | turn for turn in turns]
    assert to_row({"conversations": padded}, "sharegpt") == wanted


@pytest.mark.parametrize("opening", [1, 2])
def test_what_is_said_before_the_first_question_is_left_out(opening):
    turns = SAME["sharegpt"]["conversations"]
    greeting = [{"from": "gpt", "value": "Hello."}] * opening
    wanted = to_row(SAME["sharegpt"], "sharegpt")
    assert to_row({"conversations": [*greeting, *turns]}, "sharegpt") == wanted
    system = {"from": "system", "value": "Be brief."}
    row = to_row({"conversations": [system, *greeting, *turns]}, "sharegpt")
    assert row.messages == (("system", "Be brief."), *wanted.messages)
    with pytest.raises(BadRow, match="nobody asks"):
        to_row({"conversations": greeting}, "sharegpt")


@pytest.mark.parametrize("answer", ["12", 12, 12.0])
def test_the_answer_of_a_conversation_is_its_reference(answer):
    """It is no part of what is learned, nor of the row's identity."""
    row = to_row(SAME["sharegpt"] | {"answer": answer}, "sharegpt")
    assert row.answer == str(answer)
    assert row.id == to_row(SAME["sharegpt"], "sharegpt").id


def test_text_has_no_prompt():
    row = to_row({"text": "Once upon a time"}, "text")
    assert row.prompt == ()
    assert row.completion == "Once upon a time"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("pos", "pos"), (0, "0"), (1, "1"), (1.0, "1"), (0.5, "0.5"), (True, "1"), (False, "0"),
        (np.int64(3), "3"), (np.float32(2), "2"), (np.bool_(True), "1"), (np.str_("a"), "a"),
        (-1, "-1"),
    ],
)  # fmt: skip
def test_labels_have_one_name_whatever_their_type(label, name):
    row = to_row({"text": "fine", "label": label}, "labelled_text")
    assert row.label == row.completion == name
    assert row.prompt == (("user", "fine"),)


@pytest.mark.parametrize("label", [None, "", "  ", float("nan"), np.float32("nan")])
def test_no_label(label):
    with pytest.raises(BadRow, match="no label"):
        to_row({"text": "fine", "label": label}, "labelled_text")


USER = {"role": "user", "content": ASKED}
BAD = {
    "no column": ("prompt_completion", {"prompt": "a"}, "no column 'completion'"),
    "null completion": ("prompt_completion", {"prompt": "a", "completion": None}, "empty compl"),
    "nan": ("prompt_completion", {"prompt": "a", "completion": float("nan")}, "empty completion"),
    "blank": ("prompt_completion", {"prompt": "a", "completion": " \n"}, "empty completion"),
    "bytes": ("prompt_completion", {"prompt": b"a", "completion": "b"}, "prompt is bytes"),
    "bool": ("prompt_completion", {"prompt": "a", "completion": True}, "completion is bool"),
    "list": ("prompt_completion", {"prompt": "a", "completion": ["b"]}, "completion is list"),
    "surrogate": ("text", {"text": "half \ud83d"}, "not valid Unicode"),
    "label list": ("labelled_text", {"text": "a", "label": [1]}, "label is list"),
    "no messages": ("messages", {"messages": []}, "no messages"),
    "text for messages": ("messages", {"messages": "hi"}, "no messages"),
    "string turns": ("messages", {"messages": ["hi"]}, "a message without role and content"),
    "other names": ("messages", {"messages": [{"from": "human"}]}, "without role and content"),
    "role": ("messages", {"messages": [{"role": "tool", "content": ""}]}, "unknown role 'tool'"),
    "no answer": ("messages", {"messages": [USER]}, "last message is not the assistant's"),
    "parts": ("messages", {"messages": [{"role": "user", "content": []}]}, "content is list"),
    "cells": ("text", {"text": "a", EXTRA_CELLS: ["b"]}, "more cells than columns"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_say_why(case):
    format, record, reason = BAD[case]
    with pytest.raises(BadRow, match=reason):
        to_row(record, format)


def test_whole_surrogate_pairs_and_zero_are_content():
    assert to_row({"text": "\U0001f389"}, "text").completion == "🎉"
    assert to_row({"prompt": 0, "completion": 0}, "prompt_completion").completion == "0"


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_group_by_needs_a_value(value):
    record = {**SAME["alpaca"], "question": value}
    with pytest.raises(BadRow, match="no value in group_by column 'question'"):
        to_row(record, "alpaca", group_by="question")
    assert to_row({**record, "question": 0}, "alpaca", group_by="question").group == "0"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("#### 4", "#### 4"), (4, "4"), (np.int64(4), "4"), (None, None), (float("nan"), None),
     ("", None), ([4], None)],
)  # fmt: skip
def test_the_reference_answer(answer, wanted):
    row = to_row({**SAME["prompt_completion"], "answer": answer}, "prompt_completion")
    assert row.answer == wanted
    assert row.id == to_row(SAME["prompt_completion"], "prompt_completion").id


@settings(max_examples=50, deadline=None)
@given(messages, messages)
def test_ids_are_the_content(first, second):
    assert (content_id(tuple(first)) == content_id(tuple(second))) == (first == second)


def test_ids_stay_what_they_are():
    # Stores and runs of earlier versions name rows by these.
    assert content_id((("user", "a"), ("assistant", "é"))) == "bc3a806ba37baed12ec5c1a611550762"
    assert content_id((("user", "a"),), "1") == "348829066083161395e378905350c6ff"
    assert content_id((("user", "\ud800"),)), "an id is never refused"


def test_seams_are_part_of_the_content():
    assert content_id((("user", "ab"), ("assistant", "c"))) != content_id(
        (("user", "a"), ("assistant", "bc"))
    )
    assert content_id((("user", "a"),)) != content_id((("user", "a"),), "1")


def test_rows_are_values():
    one, two = (to_row(SAME["alpaca"], "alpaca") for _ in range(2))
    assert one == two
    assert isinstance(one, Row)
