"""Files, folders and hub data sets as a stream of (place, record).

The place (file and line, or row number) goes into every message about the record.
"""

import csv
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradex.data.formats import EXTRA_CELLS, Record
from gradex.errors import GradexError, first_line, unknown

HUB_PREFIX = "hub:"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")


def read_records(
    path: str, *, config: str | None = None, split: str | None = None, allow_pickle: bool = False
) -> Iterator[tuple[str, Record]]:
    """(place, record) for every record at `path`; the place goes into messages about it."""
    if path.startswith(HUB_PREFIX):
        return _from_hub(path.removeprefix(HUB_PREFIX), config, split)
    file = Path(path)
    if not file.exists():
        raise GradexError(
            f"{file}: no such file (a data set on the hub is written {HUB_PREFIX}owner/name)"
        )
    if file.is_dir():
        return _from_saved_dataset(file, split)
    if file.suffix in PICKLE_SUFFIXES:
        return _from_pickle(file, allow_pickle)
    if file.suffix not in READERS:
        raise unknown("kind of file", file.suffix or file.name, READERS, where=str(file))
    return _decoded(file)


def _decoded(file: Path) -> Iterator[tuple[str, Record]]:
    try:
        yield from READERS[file.suffix](file)
    except UnicodeDecodeError:
        raise GradexError(f"{_first_undecodable(file)}; save it as UTF-8") from None


def _first_undecodable(file: Path) -> str:
    """Text is decoded in blocks of many lines, so the line of the wrong byte is looked up here."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{file}:{number}: not UTF-8 text (byte {line[error.start]:#x})"
    return f"{file}: not UTF-8 text"


def _from_jsonl(file: Path) -> Iterator[tuple[str, Record]]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file}:{number}", _object(line, f"{file}:{number}")


def _object(text: str, where: str) -> Record:
    try:
        value = _parse(text, where)
    except json.JSONDecodeError as error:
        raise GradexError(
            f"{where}: not valid JSON ({error.msg}, column {error.colno}); expected one object "
            "per line"
        ) from None
    return _mapping(value, where)


def _parse(text: str, where: str) -> Any:
    """JSON, where what breaks the parser without being a syntax error is a sentence too."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise GradexError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise GradexError(f"{where}: JSON that cannot be read ({first_line(error)})") from None


def _mapping(value: Any, where: str) -> Record:
    if not isinstance(value, Mapping):
        raise GradexError(f"{where}: found {type(value).__name__}, expected an object with columns")
    return value


def _from_json(file: Path) -> Iterator[tuple[str, Record]]:
    try:
        content = _parse(file.read_text(encoding="utf-8-sig"), str(file))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _from_jsonl(file)
            return
        raise GradexError(f"{file}:{error.lineno}: not valid JSON ({error.msg})") from None
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise GradexError(
            f"{file}: found {type(content).__name__}, expected a list of objects, alone or under "
            "the key `data`; one object a line is a .jsonl file"
        )
    yield from _items(content, file)


def _items(content: list[Any], file: Path) -> Iterator[tuple[str, Record]]:
    for index, value in enumerate(content):
        yield f"{file}[{index}]", _mapping(value, f"{file}[{index}]")


def _from_csv(file: Path) -> Iterator[tuple[str, Record]]:
    csv.field_size_limit(2**31 - 1)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, restkey=EXTRA_CELLS)
        try:
            for record in reader:
                yield f"{file}:{reader.line_num}", record
        except csv.Error as error:
            raise GradexError(f"{file}:{reader.line_num + 1}: not valid CSV ({error})") from None


def _from_parquet(file: Path) -> Iterator[tuple[str, Record]]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    yield f"{file} row {number}", record
                    number += 1
    except (ArrowException, OSError) as error:
        raise GradexError(f"{file}: not a readable parquet file ({first_line(error)})") from None


def _from_saved_dataset(folder: Path, split: str | None) -> Iterator[tuple[str, Record]]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise GradexError(f"{folder}: not a saved data set ({first_line(error)})") from None
    if isinstance(data, DatasetDict):
        data = _split_of(data, split, str(folder))
    # A saved data set remembers a numpy or torch format; rows are read as plain values.
    for number, record in enumerate(data.with_format(None)):
        yield f"{folder} row {number}", record


def _from_hub(name: str, config: str | None, split: str | None) -> Iterator[tuple[str, Record]]:
    from datasets import load_dataset

    where = f"{HUB_PREFIX}{name}"
    try:
        data = load_dataset(name, config, streaming=True)
        for number, record in enumerate(_split_of(data, split, where)):
            yield f"{where} row {number}", record
    except GradexError:
        raise
    except Exception as error:  # the hub client raises many unrelated types, while it streams too
        raise GradexError(f"{where}: cannot be loaded ({first_line(error)})") from None


def _split_of(data: Mapping[str, Any], split: str | None, where: str) -> Any:
    wanted = split or ("train" if "train" in data else next(iter(data)))
    if wanted not in data:
        raise unknown("split", wanted, data, where)
    return data[wanted]


def _from_pickle(file: Path, allow_pickle: bool) -> Iterator[tuple[str, Record]]:
    if not allow_pickle:
        raise GradexError(
            f"{file}: a pickle file can run code when it is read; convert it to jsonl, or pass "
            "--allow_pickle if you made it yourself"
        )
    try:
        with open(file, "rb") as stream:
            content = pickle.load(stream)
    except Exception as error:  # unpickling runs code, which raises what it likes
        raise GradexError(f"{file}: not a readable pickle file ({first_line(error)})") from None
    if hasattr(content, "to_dict") and hasattr(content, "columns"):
        content = content.to_dict("records")
    if not isinstance(content, list):
        raise GradexError(f"{file}: found {type(content).__name__}, expected a list of records")
    yield from _items(content, file)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Record]]]] = {
    ".jsonl": _from_jsonl,
    ".ndjson": _from_jsonl,
    ".json": _from_json,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
