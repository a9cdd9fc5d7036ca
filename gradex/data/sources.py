"""Sources: named sets of rows, split once into train, select and test by the rows' content.

A row's side depends on its content (or its `group_by` value) and the seed alone, so adding rows or
sources never moves another row, and a prompt (or a group) that is held out is never trained on.
Files of select and test rows are taken as they are; what they share with others is reported.
Selection reads a target's select rows, verification its test rows.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from gradex.data.formats import Row, content_id
from gradex.data.reading import TaskReader
from gradex.data.tasks import Task, find_tasks, is_place
from gradex.errors import GradexError, unknown
from gradex.progress import say_once

SPLITS = ("train", "select", "test")
Measured = frozenset[str] | None  # the names a task's targets have; None: all its sources are


@dataclass(frozen=True)
class Source:
    """A named set of rows by split, with what was left out and why."""

    name: str
    path: str
    format: str
    metric: str
    rows: dict[str, tuple[Row, ...]]
    bad: dict[str, int] = field(default_factory=dict)

    @property
    def is_target(self) -> bool:
        return bool(self.rows["select"]) and bool(self.rows["test"])

    @property
    def data_hash(self) -> str:
        ids = [f"{split}:{row.id}" for split in SPLITS for row in self.rows[split]]
        return hashlib.sha256("\n".join(ids).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What a run keeps about a source: enough to see which row was on which side."""
        return {
            "path": self.path,
            "format": self.format,
            "metric": self.metric,
            "data_hash": self.data_hash,
            "bad": self.bad,
            "splits": {split: [row.id for row in self.rows[split]] for split in SPLITS},
        }


@dataclass(frozen=True)
class Sources(Mapping[str, Source]):
    """The sources in order. `notes` are the things a person should know about the data."""

    by_name: dict[str, Source]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Source:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def trainable(self) -> list[str]:
        return [name for name, source in self.items() if source.rows["train"]]

    @property
    def targets(self) -> list[str]:
        return [name for name, source in self.items() if source.is_target]

    def data_hashes(self) -> dict[str, str]:
        return {name: source.data_hash for name, source in self.items()}

    def record(self) -> dict[str, Any]:
        return {name: source.record() for name, source in self.items()}


@dataclass(frozen=True)
class SplitRule:
    """How rows are held out: the share of a source's rows, half for select and half for test."""

    held_out: float = 0.2
    seed: int = 0

    def side(self, row: Row, role: str) -> str:
        if role == "source":
            return "train"
        share = 1.0 if role == "target" else self.held_out
        key = f"{self.seed}\n{row.group or _prompt_id(row)}"
        draw = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")) / 2**64
        return "test" if draw < share / 2 else "select" if draw < share else "train"


def _prompt_id(row: Row) -> str:
    """Rows that prompt with nothing have no prompt to share: each is on its own."""
    asked = any(text.strip() for _, text in row.prompt)
    return content_id(row.prompt) if asked else row.id


def load_sources(
    tasks: Sequence[str],
    target: Sequence[str] | None = None,
    *,
    rule: SplitRule | None = None,
    allow_pickle: bool = False,
) -> Sources:
    """Read, check and split every source; `target` names sources or places of target rows."""
    rule = rule or SplitRule()
    by_name: dict[str, Source] = {}
    notes: list[str] = []
    for task, measured in _with_targets(find_tasks(tasks), target):
        for source in _read_task(task, measured, rule, allow_pickle):
            _add(source, task, by_name, notes)
    sources = Sources(by_name, (*notes, *_overlaps(by_name)))
    _report(sources)
    _check_usable(sources, target)
    return sources


def _with_targets(tasks: list[Task], target: Sequence[str] | None) -> list[tuple[Task, Measured]]:
    """Named targets take the place of the default, in which every source is its own target."""
    if not target:
        return [(task, None) for task in tasks]
    taken = {task.name for task in tasks}
    # A source's name wins over a folder that happens to be called the same.
    names = frozenset(item for item in target if item in taken or not is_place(item))
    places = [item for item in target if item not in names]
    added = [replace(task, role="target") for task in find_tasks(places, "--target")]
    clash = [task for task in added if task.name in taken]
    if clash:
        raise GradexError(
            f"--target {clash[0].where}: the name '{clash[0].name}' is also a source's; rename it"
        )
    if not any(task.source_column for task in tasks):
        for name in sorted(names):
            if name not in taken:
                raise unknown("source", name, sorted(taken), "--target")
    kept = [task for task in tasks if _has_use(task, names)]
    return [(task, names) for task in kept] + [(task, None) for task in added]


def _has_use(task: Task, names: frozenset[str]) -> bool:
    """A source that is only measured has none where others are named to be measured."""
    return task.role != "target" or task.name in names or task.source_column is not None


def _read_task(
    task: Task, measured: Measured, rule: SplitRule, allow_pickle: bool
) -> Iterator[Source]:
    """The source of a task, or one source a value of its `source_column`."""
    rows: dict[str, dict[str, list[Row]]] = {}
    bad: dict[str, Counter[str]] = {}
    taken_format = task.format
    for split, path in _files(task, measured).items():
        reader = TaskReader(task, path, allow_pickle)
        for name, row in reader:
            side = _side(row, task, split, rule, measured is None or name in measured)
            if side:
                rows.setdefault(name, {s: [] for s in SPLITS})[side].append(row)
        taken_format = reader.format
        for name, counts in reader.bad.items():
            bad.setdefault(name, Counter()).update(counts)
    found = sorted({*rows, *bad}) if task.source_column else []
    for name in found or [task.name]:
        splits = rows.get(name, {})
        yield Source(
            name=name,
            path=task.path,
            format=taken_format,
            metric=task.metric,
            rows={split: tuple(splits.get(split, ())) for split in SPLITS},
            bad=dict(bad.get(name, {})),
        )


def _files(task: Task, measured: Measured) -> dict[str, str]:
    """The files of a task that hold rows we need, by split."""
    if measured is not None and task.name not in measured and not task.source_column:
        return {"train": task.path}
    if not (task.select and task.test):
        return {"train": task.path}
    held_out = {"select": task.select, "test": task.test}
    return held_out if task.role == "target" else {"train": task.path, **held_out}


def _side(row: Row, task: Task, split: str, rule: SplitRule, measured: bool) -> str | None:
    """The split of a row that was read from a split's file; None where nobody needs it."""
    if not measured:
        return "train" if split == "train" and task.role != "target" else None
    if split != "train":
        return split
    return rule.side(row, "source" if task.select else task.role)


def _add(source: Source, task: Task, by_name: dict[str, Source], notes: list[str]) -> None:
    """Keep a source and note the rows it lost."""
    reasons = ", ".join(f"{count} x {reason}" for reason, count in source.bad.items())
    if not any(source.rows.values()):
        notes.append(_about_empty(source.name, task, reasons))
        return
    if source.name in by_name:
        raise GradexError(
            f"{task.where}: the source name '{source.name}' is taken by "
            f"{by_name[source.name].path}; give one of them another name"
        )
    if reasons:
        notes.append(f"{source.name}: rows left out: {reasons}")
    by_name[source.name] = source


def _about_empty(name: str, task: Task, reasons: str) -> str:
    """The note on a source without rows; one that the person named itself is refused."""
    if task.source_column and name == task.name and reasons:
        return f"{task.where}: rows that belong to no source: {reasons}"
    told = f"{name}: no usable row in {task.path}" + (f" ({reasons})" if reasons else "")
    if task.named and name == task.name:
        raise GradexError(f"{told}; give it rows or leave it out")
    return f"{told}; the source is left out"


def _overlaps(by_name: dict[str, Source]) -> list[str]:
    """Target rows seen elsewhere: a person should know before trusting a test loss."""
    trained_by: dict[str, list[str]] = {}
    for name, source in by_name.items():
        for row in source.rows["train"]:
            trained_by.setdefault(_prompt_id(row), []).append(name)
    shared: Counter[str] = Counter()
    for name, target in by_name.items():
        for split in ("select", "test"):
            for row in target.rows[split]:
                shared.update(
                    f"{split} rows of {name} have the prompt of a training row of {other}"
                    for other in set(trained_by.get(_prompt_id(row), ()))
                )
        selected = {_prompt_id(row) for row in target.rows["select"]}
        for row in target.rows["test"]:
            if _prompt_id(row) in selected:
                shared[f"test rows of {name} have the prompt of a select row of it"] += 1
    return [f"{count} {told}" for told, count in shared.items()]


def _report(sources: Sources) -> None:
    for note in sources.notes:
        say_once(f"data: {note}", level=logging.WARNING)
    taken = Counter(source.format for source in sources.values())
    formats = ", ".join(f"{name} for {count}" for name, count in taken.items())
    rows = sum(len(source.rows["train"]) for source in sources.values())
    say_once(
        f"data: {len(sources.trainable)} sources to train on ({rows} rows), "
        f"{len(sources.targets)} targets; format {formats}"
    )


def _check_usable(sources: Sources, target: Sequence[str] | None) -> None:
    if not sources.trainable:
        raise GradexError("--tasks: none of the sources has a training row")
    for name in target or ():
        if name in sources:
            _check_target(name, sources[name])
        elif not is_place(name):
            raise unknown("source", name, sources, "--target")
    if not sources.targets:
        raise GradexError(
            "no target: no source holds both select and test rows; name files of target rows with "
            "--target, or give a source `select:` and `test:` files"
        )


def _check_target(name: str, source: Source) -> None:
    if not source.is_target:
        counts = " and ".join(f"{len(source.rows[split])} {split}" for split in ("select", "test"))
        raise GradexError(
            f"--target {name}: found {counts} rows in {source.path}, expected some of both; raise "
            "--held_out, give it `select:` and `test:` files, or drop its `role: source`"
        )
