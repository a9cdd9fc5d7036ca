"""Rows as token ids: labels only on the completion, padding and batches by a token budget.

Three families share one path. Causal models see prompt and completion in one sequence, with -100
off the completion; encoder-decoders read the prompt and are labelled with the completion;
classifiers read the text and are labelled with a class.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from gradex.data.formats import BadRow, Messages, Row
from gradex.data.sources import Sources
from gradex.errors import GradexError
from gradex.progress import say_once

IGNORED = -100
PADDING = 0.05  # at most this share of a batch's tokens
Family = Literal["causal", "seq2seq", "classifier"]
Batch = dict[str, Tensor]
GENERATION_MARK = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True, slots=True)
class Example:
    """A row as ids. `labels` has the length of `input_ids` for causal models, its own otherwise."""

    row_id: str
    input_ids: np.ndarray
    labels: np.ndarray

    @property
    def length(self) -> int:
        return max(len(self.input_ids), len(self.labels))

    @property
    def n_labels(self) -> int:
        return int((self.labels != IGNORED).sum())


class Encoder:
    """Turns rows into examples with one tokenizer; says once which template it takes."""

    def __init__(
        self,
        tokenizer,
        *,
        family: Family,
        max_length: int = 512,
        label_ids: dict[str, int] | None = None,
    ):
        self.tokenizer = tokenizer
        self.family = family
        self.max_length = max_length
        self.label_ids = label_ids or {}
        self.template = self._pick_template()

    def _pick_template(self) -> str:
        """How a conversation becomes text: part of what a gradient store is made of."""
        if self.family != "causal" or not getattr(self.tokenizer, "chat_template", None):
            return "plain"
        chat = self.tokenizer.get_chat_template()
        return "chat-generation" if GENERATION_MARK.search(chat) else "chat-prefix"

    def describe(self) -> str:
        return {
            "plain": "no chat template: prompt and completion are concatenated",
            "chat-generation": "the tokenizer's chat template marks what is learned",
            "chat-prefix": "the chat template has no {% generation %} mark: the completion is what "
            "follows the prompt's tokens",
        }[self.template]

    def encode(self, row: Row) -> Example:
        """The example of a row; `BadRow` when no label is left."""
        if self.family == "classifier":
            return self._classified(row)
        if self.family == "seq2seq":
            return self._seq2seq(row)
        ids, learned = self._causal(row)
        ids, learned = ids[: self.max_length], learned[: self.max_length]
        labels = np.where(learned, ids, IGNORED)
        labels[:1] = IGNORED  # nothing predicts the first token
        if (labels == IGNORED).all():
            raise BadRow(f"no label token within {self.max_length} tokens")
        return Example(row.id, ids, labels)

    def prompt_ids(self, row: Row) -> np.ndarray:
        """What the model reads before it generates the completion."""
        if self.family == "seq2seq":
            return self._seq2seq(row).input_ids
        if self._is_chat(row):
            ids = self._apply(row.prompt, add_generation_prompt=True)["input_ids"]
        else:
            ids = self._plain_prompt(row.prompt)
        return np.array(ids[-self.max_length :], dtype=np.int64)

    def unlabelled(self, row: Row) -> Example:
        """The prompt and one place after it, to see what a model would begin its answer with.

        Its label is token 0 and means nothing; so does a classifier's.
        """
        if self.family == "classifier":
            return Example(row.id, self._classified_ids(row), np.zeros(1, np.int64))
        prompt = self.prompt_ids(row)
        if not len(prompt):
            raise BadRow("no token in the prompt")
        if self.family == "seq2seq":
            return Example(row.id, prompt, np.zeros(1, np.int64))
        labels = np.append(np.full(len(prompt), IGNORED), 0)
        return Example(row.id, np.append(prompt, 0), labels)

    def _is_chat(self, row: Row) -> bool:
        """A text without a prompt, or with a class as its label, is no conversation."""
        return self.template != "plain" and row.label is None and bool(row.prompt)

    def _causal(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        if self._is_chat(row) and self.template == "chat-generation":
            out = self._apply(row.messages, return_assistant_tokens_mask=True)
            return np.array(out["input_ids"], np.int64), np.array(out["assistant_masks"], bool)
        if self._is_chat(row):
            return self._by_prefix(row.messages)
        prompt = self._plain_prompt(row.prompt)
        completion = self._ids(row.completion) + self._special("eos_token_id")
        learned = [False] * len(prompt) + [True] * len(completion)
        return np.array(prompt + completion, dtype=np.int64), np.array(learned)

    def _by_prefix(self, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
        """Label spans as the difference between the template with and without each answer.

        A template may write a turn differently once others follow it, and a tokenizer may merge
        across the seam: what the two have in common is compared, not counted. An answer that
        opens the conversation follows no prompt and is not learned.
        """
        ids = self._apply(messages)["input_ids"]
        learned = np.zeros(len(ids), dtype=bool)
        for turn, (role, _) in enumerate(messages):
            if role == "assistant" and turn > 0:
                asked = self._apply(messages[:turn], add_generation_prompt=True)["input_ids"]
                told = self._apply(messages[: turn + 1])["input_ids"]
                learned[_shared_length(asked, ids) : _shared_length(told, ids)] = True
        return np.array(ids, dtype=np.int64), learned

    def _apply(self, messages: Messages, **kwargs) -> Mapping[str, Any]:
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            return self.tokenizer.apply_chat_template(turns, return_dict=True, **kwargs)
        except TemplateError as error:
            raise BadRow(f"the chat template refuses it: {error}") from None

    def _plain_prompt(self, messages: Messages) -> list[int]:
        return self._special("bos_token_id") + self._ids(plain_text(messages))

    def _seq2seq(self, row: Row) -> Example:
        eos = self._special("eos_token_id")
        room = self.max_length - len(eos)
        source = self._ids(plain_text(row.prompt))[:room] + eos
        labels = (self._ids(row.completion) + eos)[: self.max_length]
        if not source or not labels:
            raise BadRow("no token in the text or in the completion")
        return Example(row.id, np.array(source, np.int64), np.array(labels, np.int64))

    def _classified(self, row: Row) -> Example:
        if row.completion not in self.label_ids:
            raise BadRow(f"label '{row.completion}' is not one of the model's")
        label = self.label_ids[row.completion]
        return Example(row.id, self._classified_ids(row), np.array([label], np.int64))

    def _classified_ids(self, row: Row) -> np.ndarray:
        text = plain_text(row.prompt)
        ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        if not ids:
            raise BadRow("no token in the text")
        return np.array(ids, np.int64)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _special(self, name: str) -> list[int]:
        token = getattr(self.tokenizer, name, None)
        return [] if token is None else [token]


def _shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def plain_text(messages: Messages) -> str:
    """Messages without a template: one prompt as it is, longer conversations with their roles."""
    if len(messages) == 1:
        return messages[0][1]
    return "".join(f"{role}: {content}\n" for role, content in messages)


def encode_all(
    encoder: Encoder, rows: Iterable[Row], *, labelled: bool = True
) -> tuple[list[Example], dict[str, str]]:
    """The examples of the rows in order, and row id -> reason for those that have none."""
    encode = encoder.encode if labelled else encoder.unlabelled
    examples, bad = [], {}
    for row in rows:
        try:
            examples.append(encode(row))
        except BadRow as reason:
            bad[row.id] = str(reason)
    return examples, bad


def guess_lengths(encoder: Encoder, rows: Sequence[Row], *, sample: int = 32) -> list[int]:
    """About how many tokens each row has, from its characters: some rows in even steps tell how
    many of these a token has. For progress bars: counting would be encoding everything twice."""
    sizes = [sum(len(text) for _, text in row.messages) for row in rows]
    chosen = range(0, len(rows), max(1, len(rows) // sample))
    examples, bad = encode_all(encoder, [rows[i] for i in chosen])
    seen = sum(sizes[i] for i in chosen if rows[i].id not in bad)
    per_character = sum(example.length for example in examples) / max(1, seen)
    return [min(encoder.max_length, math.ceil(size * per_character)) for size in sizes]


def log_bad(name: str, bad: dict[str, str]) -> None:
    for reason, count in Counter(bad.values()).items():
        say_once(f"data: {name}: rows left out: {count} x {reason}", level=logging.WARNING)


def collate(
    examples: Sequence[Example],
    *,
    family: Family,
    pad_id: int,
    padding_side: Literal["right", "left"] = "right",
) -> Batch:
    """Examples of one batch as padded tensors."""
    ids = _pad([e.input_ids for e in examples], pad_id, padding_side)
    mask = _pad([np.ones_like(e.input_ids) for e in examples], 0, padding_side)
    if family == "classifier":
        labels = torch.tensor([int(e.labels[0]) for e in examples])
    else:
        labels = _pad([e.labels for e in examples], IGNORED, padding_side)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _pad(arrays: Sequence[np.ndarray], value: int, side: str) -> Tensor:
    width = max(map(len, arrays))
    out = np.full((len(arrays), width), value, dtype=np.int64)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
        if side == "left":
            row[:] = np.roll(row, width - len(array))
    return torch.from_numpy(out)


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in batches of at most `budget` padded tokens, longest first.

    A batch ends before padding is more than a twentieth of it, so that it never is of the whole; a
    single row longer than the budget is a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    tokens = 0
    for position in order:
        padded = (len(batch) + 1) * lengths[batch[0]] if batch else 0
        if padded > budget or tokens + lengths[position] < (1 - PADDING) * padded:
            yield batch
            batch, tokens = [], 0
        batch.append(position)
        tokens += lengths[position]
    if batch:
        yield batch


def class_names(sources: Sources, *, among: Container[str] | None = None) -> list[str]:
    """The classes of the labelled rows, where there are any; `among` some ids only."""
    rows = [row for source in sources.values() for split in source.rows.values() for row in split]
    known = [row for row in rows if among is None or row.id in among]
    labelled = [row for row in known if row.label is not None]
    return label_names(labelled) if labelled else []


def label_names(rows: Iterable[Row]) -> list[str]:
    """The classes of labelled rows, numbers in their order, other names alphabetically."""
    names = {row.completion for row in rows}
    if not names:
        raise GradexError("a classifier needs labelled rows: columns `text` and `label`")
    return sorted(names, key=_numbers_first)


def _numbers_first(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
