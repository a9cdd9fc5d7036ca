"""Sources as a folder of tasks, one YAML each beside their rows: what `--tasks` reads.

    0007-cot%2Fcluster-003.yaml        in the order of the sources
    rows/0007-....train.jsonl          and .select.jsonl, .test.jsonl of what is a target

Read again, every source has the same rows on the same sides of the split.
"""

from pathlib import Path

import yaml

from gradex.data.formats import Row
from gradex.data.recorded import require_same_data
from gradex.data.sources import SPLITS, Source, Sources, load_sources
from gradex.data.subsets import encode_name
from gradex.data.writing import record_of, write_records
from gradex.records import write_text

ROWS = "rows"


def write_task_folder(folder: Path, sources: Sources) -> None:
    """Write all sources that are trained on or measured, then read them as a check."""
    digits = len(str(len(sources)))
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources.values()):
        stem = f"{number:0{digits}d}-{encode_name(source.name)}"
        task = _task(source) | _write_rows(folder, stem, source)
        text = yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
        write_text(folder / f"{stem}.yaml", text)
    require_same_data(load_sources([str(folder)]), sources.data_hashes(), where=str(folder))


def _task(source: Source) -> dict[str, str]:
    trained = bool(source.rows["train"])
    role = "both" if trained and source.is_target else "source" if trained else "target"
    return {
        "name": source.name,
        "format": _format(next(row for part in SPLITS for row in source.rows[part])),
        "metric": source.metric,
        "role": role,
    }


def _format(row: Row) -> str:
    return "messages" if row.label is None else "labelled_text"


def _write_rows(folder: Path, stem: str, source: Source) -> dict[str, str]:
    """A file for each split that is there; YAML key -> path from the folder."""
    places = {}
    for split in ("train", "select", "test"):
        if source.rows[split] and (split == "train" or source.is_target):
            places[split] = f"{ROWS}/{stem}.{split}.jsonl"
            write_records(folder / places[split], map(record_of, source.rows[split]))
    return {"path": places.pop("train", places.get("select", ""))} | places
