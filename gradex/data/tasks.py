"""Tasks: what the person declares about a source, one YAML (or one bare data file) each.

name: trec                    # default: the file's stem
path: ../../data/trec.jsonl   # from the YAML's folder; or hub:owner/name
format: auto                  # or messages, sharegpt, prompt_completion, alpaca, text, ...
columns: {prompt: inputs, completion: targets}
metric: loss                  # or exact_match, answer
role: both                    # source (only trained on), target (only measured), both
select: trec.select.jsonl     # the target's rows; both or neither, default: held out by prompt
test: trec.test.jsonl
source_column: skill          # one file, many sources: each value is one
group_by: question            # rows of one value stay on one side of the split
config: main                  # of a hub data set
split: train
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gradex.config import read_yaml
from gradex.data.files import HUB_PREFIX, PICKLE_SUFFIXES, READERS
from gradex.data.formats import COLUMNS, FORMATS
from gradex.data.metrics import METRICS
from gradex.data.subsets import check_name
from gradex.errors import GradexError, unknown
from gradex.progress import say_once

ROLES = ("both", "source", "target")
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Task:
    """One declared source. `where` is the YAML or data file it came from; `named` tells whether
    the person named it itself, rather than a folder it lies in."""

    name: str
    path: str
    where: str
    named: bool
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    metric: str = "loss"
    role: str = "both"
    select: str | None = None
    test: str | None = None
    source_column: str | None = None
    group_by: str | None = None
    config: str | None = None
    split: str | None = None


YAML_KEYS = [f.name for f in fields(Task) if f.name not in ("where", "named")]


def find_tasks(places: Sequence[str], flag: str = "--tasks") -> list[Task]:
    """The tasks at each place: a folder, a YAML, a data file or a hub id, in the given order."""
    tasks = [task for place in places for task in _tasks_at(place, flag)]
    seen: dict[str, str] = {}
    for task in tasks:
        if task.name in seen:
            raise GradexError(
                f"{task.where}: the source name '{task.name}' is taken by {seen[task.name]}; give "
                "one of them another name (the key `name:` in a task YAML)"
            )
        seen[task.name] = task.where
    return tasks


def _tasks_at(place: str, flag: str) -> Iterator[Task]:
    if place.startswith(HUB_PREFIX):
        yield _bare(place, place.removeprefix(HUB_PREFIX), named=True)
        return
    path = Path(place)
    if not path.exists():
        raise GradexError(
            f"{flag} {place}: no such file or folder; `gradex init DIR` makes a workspace with "
            "tasks/demo in it"
        )
    if path.is_dir() and not _is_saved_dataset(path):
        yield from _tasks_in(path, flag)
    elif path.suffix in YAML_SUFFIXES:
        yield read_task(path, named=True)
    else:
        yield _bare(str(path), path.stem if path.is_file() else path.name, named=True)


def _tasks_in(folder: Path, flag: str) -> Iterator[Task]:
    """The YAMLs of a folder; where it has none, its data files."""
    entries = sorted(folder.iterdir())
    yamls = [path for path in entries if path.suffix in YAML_SUFFIXES]
    data = [path for path in entries if path.suffix in READERS or _is_saved_dataset(path)]
    if not yamls and not data:
        raise GradexError(
            f"{flag} {folder}: found neither YAMLs nor data files ({', '.join(READERS)}) in it"
        )
    tasks = [read_task(path, named=False) for path in yamls]
    yield from tasks
    if tasks:
        _tell_unread(folder, data, tasks)
    else:
        for path in data:
            yield _bare(str(path), path.stem if path.is_file() else path.name, named=False)


def _tell_unread(folder: Path, data: list[Path], tasks: list[Task]) -> None:
    used = {Path(p).resolve() for t in tasks for p in (t.path, t.select, t.test) if p}
    unread = [path.name for path in data if path.resolve() not in used]
    if unread:
        say_once(
            f"data: {folder} holds YAMLs, so that {', '.join(unread)} are not read; give each a "
            "YAML, or name it in --tasks too",
            level=logging.WARNING,
        )


def _is_saved_dataset(path: Path) -> bool:
    marks = ("dataset_info.json", "dataset_dict.json", "state.json")
    return path.is_dir() and any((path / mark).exists() for mark in marks)


def _bare(path: str, name: str, *, named: bool) -> Task:
    return Task(name=check_name(name, path), path=path, where=path, named=named)


def read_task(path: Path, *, named: bool) -> Task:
    """A task YAML, checked key by key."""
    content = read_yaml(path)
    where = str(path)
    for key in content:
        if key not in YAML_KEYS:
            raise unknown("key", key, YAML_KEYS, where)
    for key, value in content.items():
        _check_type(key, value, where)
    content = {key: value for key, value in content.items() if value is not None}
    if not content.get("path"):
        raise GradexError(f"{where}: key 'path' is missing; it names the data of the source")
    _check_choice(content, "format", ["auto", *FORMATS], where)
    _check_choice(content, "metric", METRICS, where)
    _check_choice(content, "role", ROLES, where)
    if ("select" in content) != ("test" in content):
        raise GradexError(f"{where}: `select` and `test` go together; name both files or neither")
    if content.get("role") == "source" and "select" in content:
        raise GradexError(f"{where}: role is source, so `select` and `test` have no use; drop them")
    for key in ("path", "select", "test"):
        if key in content:
            content[key] = _from_folder_of(path, content[key])
    name = check_name(str(content.pop("name", path.stem)), where)
    return Task(name=name, where=where, named=named, **content)


def _check_type(key: str, value: Any, where: str) -> None:
    if key == "columns":
        _check_columns(value, where)
    elif value is not None and not isinstance(value, str):
        # YAML reads 007 as 7 and `no` as False: what was meant is only known in quotes.
        raise GradexError(f"{where}: key '{key}' is {value!r}, expected text; put it in quotes")


def _check_columns(value: Any, where: str) -> None:
    if value is not None and not isinstance(value, dict):
        raise GradexError(f"{where}: key 'columns' is {value!r}, expected a mapping (ours: theirs)")
    for ours, theirs in (value or {}).items():
        if ours not in COLUMNS:
            raise unknown("column of ours", ours, COLUMNS, f"{where}: key 'columns'")
        if not isinstance(theirs, str):
            raise GradexError(
                f"{where}: key 'columns.{ours}' is {theirs!r}, expected the name of a column; put "
                "it in quotes"
            )


def _check_choice(content: dict[str, Any], key: str, known: Any, where: str) -> None:
    if key in content and content[key] not in known:
        raise unknown(key, content[key], known, where)


def _from_folder_of(yaml: Path, path: str) -> str:
    return path if path.startswith(HUB_PREFIX) else str(yaml.parent / path)


def is_place(text: str) -> bool:
    """Whether a `--target` value names files rather than a source."""
    suffixes = (*YAML_SUFFIXES, *READERS, *PICKLE_SUFFIXES)
    return text.startswith(HUB_PREFIX) or text.endswith(suffixes) or Path(text).is_dir()
