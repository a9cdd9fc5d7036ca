"""Rows as people keep them, brought to one canonical form: a conversation with a content-hash id.

`to_row` turns a record of a known format into a `Row`, or raises `BadRow` with the reason why
nothing can be learned from it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from gradex.errors import GradexError, unknown

Record = Mapping[str, Any]
Messages = tuple[tuple[str, str], ...]

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
    return _turns(record["messages"], role="role", content="content")


def _sharegpt(record: Record) -> Messages:
    turns = _turns(record["conversations"], role="from", content="value")
    system = record.get("system")
    return (("system", system), *turns) if isinstance(system, str) and system else turns


def _prompt_completion(record: Record) -> Messages:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list):
        tail = completion if isinstance(completion, list) else [_said(completion)]
        return _turns([*prompt, *tail], role="role", content="content")
    return (("user", _text(prompt, "prompt")), ("assistant", _text(completion, "completion")))


def _alpaca(record: Record) -> Messages:
    parts = [_text(record["instruction"], "instruction"), record.get("input") or ""]
    question = "\n\n".join(part for part in parts if part)
    turns: list[tuple[str, str]] = []
    if record.get("system"):
        turns.append(("system", _text(record["system"], "system")))
    for asked, told in record.get("history") or []:
        turns += [("user", asked), ("assistant", told)]
    return (*turns, ("user", question), ("assistant", _text(record["output"], "output")))


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


def _said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _turns(turns: Any, *, role: str, content: str) -> Messages:
    if not isinstance(turns, list) or not turns:
        raise BadRow("no messages")
    return tuple(_turn(turn, role=role, content=content) for turn in turns)


def _turn(turn: Any, *, role: str, content: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping) or role not in turn or content not in turn:
        raise BadRow(f"a message without {role} and {content}")
    speaker = ROLES.get(str(turn[role]).lower())
    if speaker is None:
        raise BadRow(f"unknown role '{turn[role]}'")
    return speaker, _text(turn[content], content)


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{name} is {type(value).__name__}, not text")
    return str(value)


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
    messages = convert(record)
    label = _label(record["label"]) if format == "labelled_text" else None
    if label is None and messages[-1][0] != "assistant":
        raise BadRow("the last message is not the assistant's")
    if not (messages[-1][1] if label is None else label).strip():
        raise BadRow("empty completion")
    if group_by and record.get(group_by) in (None, ""):
        raise BadRow(f"no value in group_by column '{group_by}'")
    answer = record.get("answer")
    return Row(
        id=content_id(messages, label),
        messages=messages,
        label=label,
        answer=str(answer) if isinstance(answer, str | int | float) else None,
        group=str(record[group_by]) if group_by else None,
    )


def _label(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else _text(value, "label")


def content_id(messages: Messages, label: str | None = None) -> str:
    """128 bits of the content as hex: the row's identity, wherever it came from."""
    content = json.dumps([messages, label], ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogatepass"))
