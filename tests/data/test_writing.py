"""Rows written are rows read: same messages, same answers, same ids."""

import json

import pytest

from gradex.data.formats import sniff, to_row
from gradex.data.writing import record_of, write_records

RECORDS = {
    "messages": {
        "messages": [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "2+2?\n"},
            {"role": "assistant", "content": "4 \u00e9\u2028"},
        ],
        "answer": 4,
    },
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "alpaca": {"instruction": "add", "input": "1 2", "output": "3", "system": "s"},
    "text": {"text": "once upon"},
    "labelled_text": {"text": "good", "label": True, "answer": "1"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_row_survives_the_way_through_a_file(tmp_path, name):
    row = to_row(RECORDS[name], name)
    file = write_records(tmp_path / "new" / "rows.jsonl", [record_of(row, source="s/1")])
    lines = file.read_bytes().decode("utf-8").split("\n")
    assert lines[1:] == [""]
    record = json.loads(lines[0])
    again = to_row(record, sniff(record, "here"))
    assert (again.id, again.messages, again.answer) == (row.id, row.messages, row.answer)
    assert record["source"] == "s/1"
