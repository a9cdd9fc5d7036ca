"""Rows as people keep them, brought to one canonical form: a conversation with a content-hash id.

`to_row` turns a record of a known format into a `Row`, or raises `BadRow` with the reason why
nothing can be learned from it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

import numpy as np
import xxhash

from gradex.errors import GradexError, unknown

Record = Mapping[str, Any]
Messages = tuple[tuple[str, str], ...]

# Where a CSV line has more cells than the header, what the rest of them is kept under.
EXTRA_CELLS = "(cells without a column)"

_as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip


class BadRow(Exception):
    """A row that cannot be learned from; the text is the reason that is counted and reported."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example: a conversation whose assistant turns are learned, or a text with its label."""

    id: str
    messages: Messages
    label: str | None = None
    answer: str | None = None
    group: str | None = None

    @property
    def completion(self) -> str:
        return self.label if self.label is not None else self.messages[-1][1]

    @property
    def prompt(self) -> Messages:
        return self.messages if self.label is not None else self.messages[:-1]


def _conversation(record: Record) -> Messages:
    return _turns(record["messages"])


def _sharegpt(record: Record) -> Messages:
    """Some of these files write their turns as `messages` do. What the model says before it was
    asked anything answers no prompt and is left out."""
    turns = _turns(record["conversations"], ("from", "role"), ("value", "content"))
    opening = [turn for turn in turns[:1] if turn[0] == "system"] or [*_system(record)]
    said = list(dropwhile(lambda turn: turn[0] != "user", turns))
    if not said:
        raise BadRow("nobody asks anything")
    return (*opening, *said)


def _prompt_completion(record: Record) -> Messages:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list):
        tail = completion if isinstance(completion, list) else [_said(completion)]
        return _turns([*prompt, *tail])
    return (("user", _text(prompt, "prompt")), ("assistant", _text(completion, "completion")))


def _alpaca(record: Record) -> Messages:
    parts = [_text(record["instruction"], "instruction"), _text(record.get("input"), "input")]
    question = "\n\n".join(part for part in parts if part)
    answer = _text(record["output"], "output")
    return (*_system(record), *_history(record), ("user", question), ("assistant", answer))


def _system(record: Record) -> Messages:
    system = _text(record.get("system"), "system")
    return (("system", system),) if system else ()


def _history(record: Record) -> Messages:
    pairs = record.get("history") or []
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise BadRow("history is not pairs of a question and its answer")
    roles = ("user", "assistant")
    return tuple(
        (role, _text(said, "history"))
        for pair in pairs
        for role, said in zip(roles, pair, strict=True)
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _plain_text(record: Record) -> Messages:
    return (("assistant", _text(record["text"], "text")),)


def _labelled_text(record: Record) -> Messages:
    return (("user", _text(record["text"], "text")),)


# Format -> (the columns that tell it, how a record becomes messages). Sniffed in this order.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Record], Messages]]] = {
    "messages": (("messages",), _conversation),
    "sharegpt": (("conversations",), _sharegpt),
    "prompt_completion": (("prompt", "completion"), _prompt_completion),
    "alpaca": (("instruction", "output"), _alpaca),
    "labelled_text": (("text", "label"), _labelled_text),
    "text": (("text",), _plain_text),
}

# All that a record is asked for: the names that `columns:` of a task may map.
COLUMNS = [
    *dict.fromkeys(column for needed, _ in FORMATS.values() for column in needed),
    "input", "system", "history", "answer",
]  # fmt: skip


def _said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _turns(
    turns: Any, roles: Sequence[str] = ("role",), contents: Sequence[str] = ("content",)
) -> Messages:
    """Who said what, each under one of these keys."""
    if not isinstance(turns, list) or not turns:
        raise BadRow("no messages")
    return tuple(_turn(turn, roles, contents) for turn in turns)


def _turn(turn: Any, roles: Sequence[str], contents: Sequence[str]) -> tuple[str, str]:
    role, content = (_key_of(turn, known) for known in (roles, contents))
    if role is None or content is None:
        raise BadRow(f"a message without {roles[0]} and {contents[0]}")
    speaker = ROLES.get(str(turn[role]).lower())
    if speaker is None:
        raise BadRow(f"unknown role '{turn[role]}'")
    return speaker, _text(turn[content], content)


def _key_of(turn: Any, known: Sequence[str]) -> str | None:
    """The first of them that the turn has: with a value, for in a table every turn has all keys."""
    found = [key for key in known if isinstance(turn, Mapping) and key in turn]
    return max(found, key=lambda key: turn[key] is not None, default=None)


def _text(value: Any, name: str) -> str:
    if is_absent(value):
        return ""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{name} is {type(value).__name__}, not text")
    text = str(value)
    if not text.isascii() and not _is_unicode(text):
        raise BadRow(f"{name} is not valid Unicode (half of a surrogate pair)")
    return text


def is_absent(value: Any) -> bool:
    """Nothing, as JSON, CSV and pandas (which writes nan) say it."""
    value = _plain(value)
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value)


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def sniff(columns: Iterable[str], where: str) -> str:
    """The format whose columns are all there, or an error that names what was found."""
    found = set(columns)
    for name, (needed, _) in FORMATS.items():
        if found.issuperset(needed):
            return name
    known = "; ".join(f"{name} ({', '.join(needed)})" for name, (needed, _) in FORMATS.items())
    raise GradexError(
        f"{where}: found the columns {', '.join(sorted(map(str, found)))}, expected those of a "
        f"known format: {known}; map yours with `columns:` in a task YAML"
    )


def require_columns(record: Record, format: str, where: str) -> None:
    """A column missing from the first record is a mistake in the task, not a bad row."""
    if format not in FORMATS:
        raise unknown("format", format, ["auto", *FORMATS], where)
    missing = [name for name in FORMATS[format][0] if name not in record]
    if missing:
        raise GradexError(
            f"{where}: column '{missing[0]}' is missing for format {format}; found "
            f"{', '.join(sorted(map(str, record)))}; map your names with `columns:` in a task YAML"
        )


def to_row(record: Record, format: str, *, group_by: str | None = None) -> Row:
    """The canonical row of a record, or `BadRow` with the reason."""
    needed, convert = FORMATS[format]
    missing = [name for name in needed if name not in record]
    if missing:
        raise BadRow(f"no column '{missing[0]}'")
    if EXTRA_CELLS in record:
        raise BadRow("more cells than columns (quote cells that hold commas)")
    messages = convert(record)
    label = _label(record["label"]) if format == "labelled_text" else None
    if label is None:
        _check_completion(messages)
    if group_by and is_absent(record.get(group_by)):
        raise BadRow(f"no value in group_by column '{group_by}'")
    return Row(
        id=content_id(messages, label),
        messages=messages,
        label=label,
        answer=_answer(record.get("answer")),
        group=str(record[group_by]) if group_by else None,
    )


def _check_completion(messages: Messages) -> None:
    role, text = messages[-1]
    if role != "assistant":
        raise BadRow("the last message is not the assistant's")
    if not text.strip():
        raise BadRow("empty completion")


def _label(value: Any) -> str:
    """One class has one name, however the file's types spell it: True, 1 and 1.0 are 1."""
    value = _plain(value)
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    label = _text(value, "label")
    if not label.strip():
        raise BadRow("no label")
    return label


def _answer(value: Any) -> str | None:
    """The reference of the metric, where the row has one that can be compared."""
    value = None if is_absent(value) else _plain(value)
    return str(value) if isinstance(value, str | int | float) else None


def content_id(messages: Messages, label: str | None = None) -> str:
    """128 bits of the content as hex: the row's identity, wherever it came from."""
    content = _as_json((messages, label))
    return xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogatepass"))
