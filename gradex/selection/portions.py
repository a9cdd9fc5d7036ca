"""What each chosen source gives to a training: its rows, and how often where it has a share."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradex.data.formats import Messages, Row
from gradex.data.sources import Sources
from gradex.data.subsets import encode_name
from gradex.data.writing import record_of
from gradex.errors import GradexError
from gradex.selection.choice import Selection
from gradex.selection.shares import apportion

# What the rows of a source are to a trainer: turns of user and assistant that alternate, other
# conversations, texts without a prompt, texts with a class.
Kind = Literal["chat", "conversation", "text", "labelled"]
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "chat": ("messages",),
    "conversation": ("messages",),
    "text": ("text",),
    "labelled": ("text", "label"),
}
# The JSON reader of the datasets library makes times of a column in which every text is one.
TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:?\d\d){0,2}(Z|[+-]\d\d(:?\d\d)?)?)?")


@dataclass(frozen=True)
class Portion:
    """Rows of a chosen source, and the source's share of the training where it has one."""

    name: str
    rows: tuple[Row, ...]
    kind: Kind
    share: float | None = None

    @property
    def word(self) -> str:
        """The name as a file's name, and as other tools take names."""
        return encode_name(self.name)

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows as they are written, all with the same columns: readers of several files at
        once take these from the first one. So answers, which only metrics read, are left out."""
        more: dict[str, Any] = {} if self.share is None else {"weight": self.share}
        for row in self.rows:
            whole = {"text": row.completion} if self.kind == "text" else record_of(row)
            content = {column: whole[column] for column in COLUMNS[self.kind]}
            yield content | {"source": self.name, "id": row.id} | more


def portions_of(selection: Selection, sources: Sources) -> list[Portion]:
    """The training rows of the chosen sources, in the order of the choice."""
    portions = []
    for name in selection.selected:
        rows = sources[name].rows["train"]
        if not rows:
            raise GradexError(f"the source '{name}' is selected and has no training row")
        _require_more_than_times(name, rows)
        portions.append(Portion(name, rows, kind_of(rows), selection.weights.get(name)))
    return portions


def kind_of(rows: Sequence[Row]) -> Kind:
    if any(row.label is not None for row in rows):
        return "labelled"
    if not any(row.prompt for row in rows):
        return "text"
    return "chat" if all(_alternates(row.messages) for row in rows) else "conversation"


def _alternates(messages: Messages) -> bool:
    """A system message or none, then user and assistant in turn, the assistant last."""
    roles = [role for role, _ in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    return turns == ["user", "assistant"] * (len(turns) // 2)


def _require_more_than_times(name: str, rows: Sequence[Row]) -> None:
    """Every trainer reads rows with the datasets library, which would change such texts."""
    if _are_times([name]):
        raise GradexError(
            f"the source name '{name}' would be read as a time; give it a name with a word in it"
        )
    said = (text for row in rows for _, text in row.messages)
    if _are_times(said) or _are_times(row.label or "" for row in rows):
        raise GradexError(
            f"'{name}': every text is a date, which trainers would read as times; write a word "
            "beside the dates"
        )


def _are_times(texts: Iterable[str]) -> bool:
    return all(TIME.fullmatch(text) for text in texts)


def mixture(portions: Sequence[Portion], total: int, *, seed: int) -> list[Portion]:
    """`total` rows in all, of each source as many as its share says; a source without one is gone.

    The rows of a source come in whole passes, each in an order of its own, so that none is taken
    twice more often than another.
    """
    counts = apportion([portion.share or 0.0 for portion in portions], total)
    return [
        replace(portion, rows=_passes(portion.rows, count, seed=[seed, number]))
        for number, (portion, count) in enumerate(zip(portions, counts, strict=True))
        if count
    ]


def _passes(rows: Sequence[Row], count: int, *, seed: Sequence[int]) -> tuple[Row, ...]:
    rng = np.random.default_rng(seed)
    passes = -(-count // len(rows))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(passes)])[:count]
    return tuple(rows[i] for i in order)
