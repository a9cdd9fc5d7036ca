"""Writes the card of exported rows: `datasets.load_dataset` reads what is in the folder from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gradex.reporting.markdown import code, fenced, table_row
from gradex.reporting.quantities import count, percent

# What load_dataset reads where it is told no name, and, with a space, names that no source has:
# in a source's word it is %20.
ALL, MIXTURE, CALLED_DEFAULT = "default", "mixture by shares", "source default"
DIFFERENCES = """\
Training with these files is the fine-tune of `gradex finetune` as far as the trainer allows: same
rows, steps, batches, adapter and learning rate. What differs:

- The order of the rows, and the adapter's random start.
- Trainers average the loss over the tokens of a batch, gradex over its rows.
- A tokenizer needs a chat template, which gradex does without. trl learns the assistant's turns
  only where the template marks them or trl knows the model.
- Plain texts begin with a start token only where the tokenizer adds it by itself.
- open-instruct adapts the layers it names itself, in bfloat16.
- With several devices, divide the batch size by their number.
"""


@dataclass(frozen=True)
class CardRow:
    """A source in the table. `mixed` is how often its rows are in the mixture, if there is one."""

    name: str
    word: str
    path: str
    n_rows: int
    columns: tuple[str, ...]
    share: float | None = None
    mixed: int | None = None
    mixed_path: str | None = None


def dataset_card(
    rows: Sequence[CardRow],
    *,
    target: str,
    method: str,
    base: str,
    trainers: Mapping[str, str],
    left_out: Mapping[str, str],
    command: str,
    versions: Mapping[str, str],
) -> str:
    """Markdown with YAML front matter; `trainers` are their commands, `left_out` the reasons."""
    parts = [
        _front_matter(rows),
        f"# Training rows for {code(target)}",
        f"Chosen with gradex by {code(method)} selection, to fine-tune {code(base)}. Rows that "
        "targets are measured on are not among them.",
        _table(rows),
        *_mixture(rows),
        "## Load",
        fenced(_loading(rows), "python"),
        *_training(trainers, left_out),
        "## How it was made",
        fenced(command, "sh"),
        "\n".join(f"- {code(name)} {code(version)}" for name, version in versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(rows: Sequence[CardRow]) -> str:
    content = {"configs": _configs(rows), "tags": ["gradex"]}
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _configs(rows: Sequence[CardRow]) -> list[dict[str, Any]]:
    """One for each source, and for all of them where their rows have the same columns."""
    configs = [_config(_config_name(row), [row.path]) for row in rows]
    if _together(rows):
        configs.insert(0, _config(ALL, [row.path for row in rows]))
        mixed = [row.mixed_path for row in rows if row.mixed_path]
        configs += [_config(MIXTURE, mixed)] if mixed else []
    return configs


def _together(rows: Sequence[CardRow]) -> bool:
    return len({row.columns for row in rows}) == 1


def _config(name: str, paths: list[str]) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": paths}]}


def _config_name(row: CardRow) -> str:
    return row.word if row.word != ALL else CALLED_DEFAULT


def _table(rows: Sequence[CardRow]) -> str:
    shares = any(row.share is not None for row in rows)
    head = ["Source", "Rows", *(["Share", "Rows in the mixture"] if shares else []), "Columns"]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    for row in rows:
        mixed = [percent(row.share), count(row.mixed)] if shares else []
        columns = ", ".join(map(code, row.columns))
        lines.append([code(row.name), count(row.n_rows), *mixed, columns])
    return "\n".join(map(table_row, lines))


def _mixture(rows: Sequence[CardRow]) -> list[str]:
    if not any(row.mixed_path for row in rows):
        return []
    return [
        "`data/` holds every row once. `mixture/` repeats the rows of each source, or leaves some "
        "out, so that all files one after the other are the mixture by shares, and as long as the "
        "training: once through it, shuffled. That is what the trainers' files name."
    ]


def _loading(rows: Sequence[CardRow]) -> str:
    lines = ["from datasets import load_dataset", ""]
    if _together(rows):
        lines.append('rows = load_dataset("path/to/this/folder", split="train")')
    one = f'load_dataset("path/to/this/folder", "{_config_name(rows[0])}", split="train")'
    return "\n".join([*lines, f"one_source = {one}"])


def _training(trainers: Mapping[str, str], left_out: Mapping[str, str]) -> list[str]:
    if not trainers and not left_out:
        return []
    parts = ["## Train"]
    if trainers:
        parts += ["In this folder, one of:", fenced("\n".join(trainers.values()), "sh")]
        parts.append(DIFFERENCES.strip())
    parts += [f"Not for {code(name)}: {code(reason)}." for name, reason in left_out.items()]
    return parts
