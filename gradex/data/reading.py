"""The rows of a task's file, each with the name of the source it belongs to."""

from collections import Counter
from collections.abc import Iterator

from gradex.data.files import read_records
from gradex.data.formats import (
    BadRow,
    Record,
    Row,
    is_absent,
    require_columns,
    sniff,
    to_row,
)
from gradex.data.subsets import check_name
from gradex.data.tasks import Task
from gradex.errors import GradexError


class TaskReader:
    """Rows of one file with the name of their source; counts what it leaves out."""

    def __init__(self, task: Task, path: str, allow_pickle: bool):
        self.task, self.path = task, path
        self.format = task.format
        self.bad: dict[str, Counter[str]] = {}
        self.records = read_records(
            path, config=task.config, split=task.split, allow_pickle=allow_pickle
        )

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        seen: dict[str, set[str]] = {}
        first = True
        for where, record in self.records:
            if first:
                self._look_at_first(record, where)
                first = False
            name = self.task.name
            try:
                name = self._source_name(record)
                if name not in seen:
                    check_name(name, where)
                    seen[name] = set()
                row = to_row(self._renamed(record), self.format, group_by=self.task.group_by)
                if row.id in seen[name]:
                    raise BadRow("a row the source holds already")
            except BadRow as reason:
                self.bad.setdefault(name, Counter())[str(reason)] += 1
                continue
            seen[name].add(row.id)
            yield name, row

    def _look_at_first(self, record: Record, where: str) -> None:
        task = self.task
        optional = {f"columns.{ours}": theirs for ours, theirs in task.columns.items()}
        optional |= {"source_column": task.source_column, "group_by": task.group_by}
        for key, column in optional.items():
            if column is not None and column not in record:
                raise GradexError(
                    f"{task.where}: key '{key}' names the column '{column}', but {where} has "
                    f"{', '.join(sorted(map(str, record)))}"
                )
        renamed = self._renamed(record)
        if self.format == "auto":
            self.format = sniff(renamed, where)
        require_columns(renamed, self.format, where)

    def _renamed(self, record: Record) -> Record:
        columns = self.task.columns
        if not columns:
            return record
        return {
            **record,
            **{o: record[theirs] for o, theirs in columns.items() if theirs in record},
        }

    def _source_name(self, record: Record) -> str:
        column = self.task.source_column
        if column is None:
            return self.task.name
        if is_absent(record.get(column)):
            raise BadRow(f"no value in source_column '{column}'")
        return str(record[column])
