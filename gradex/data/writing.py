"""Rows back into files that every reader of ours, and of others, takes: one JSON record a line."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradex.data.formats import Row
from gradex.records import replacing


def record_of(row: Row, **more: Any) -> dict[str, Any]:
    """The row as a conversation, or as a text with its label; read again, it has the same id.

    `more` are columns of its own, such as the source's name.
    """
    if row.label is not None:
        content: dict[str, Any] = {"text": row.messages[-1][1], "label": row.label}
    else:
        content = {"messages": [{"role": role, "content": said} for role, said in row.messages]}
    if row.answer is not None:
        content["answer"] = row.answer
    return content | more


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """JSON Lines, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
    return path
