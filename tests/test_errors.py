"""Error sentences: they name what is near, and hold nothing that a terminal obeys."""

import logging

from gradex.config import _Printable
from gradex.errors import printable, unknown


def test_of_many_names_the_nearest_are_named_first():
    known = [f"source {i:03d}" for i in range(300)]
    said = str(unknown("source", "sourc 123", known, "--must"))
    assert said.startswith("--must: unknown source 'sourc 123'; known are: source 123, ")
    assert said.endswith(", and 260 more") and said.count("source 123") == 1


def test_few_names_keep_their_order():
    assert str(unknown("source", "b", "ab c".split())) == "unknown source 'b'; known are: ab, c"


def test_what_a_terminal_obeys_is_written_out():
    text = "a\x1b[31m\r\u202eb é\n"
    assert printable(text) == "a\\x1b[31m\\r\\u202eb é\n"
    record = logging.LogRecord("gradex", logging.INFO, "f", 1, "%s", (text,), None)
    assert _Printable().format(record) == printable(text)
