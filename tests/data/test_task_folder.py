"""Sources written as tasks and read again are the same: rows, splits, order, names, metrics."""

import logging

import pytest
import yaml

from gradex.data.formats import to_row
from gradex.data.sources import Source, Sources, load_sources
from gradex.data.task_folder import write_task_folder
from gradex.errors import GradexError

RECORDS = {
    "prompt_completion": [
        {"prompt": f"p{i}", "completion": f"c{i}", "answer": i} for i in range(6)
    ],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "be\u2028brief"},
                {"role": "user", "content": f"  <b>{i}</b>\n"},
                {"role": "assistant", "content": "no\r\n\t\x07"},
                {"role": "user", "content": ""},
                {"role": "assistant", "content": f"=1+{i}"},
            ]
        }
        for i in range(6)
    ],
    "text": [{"text": f"{i}: only text"} for i in range(6)],
    "labelled_text": [{"text": f"t{i}", "label": ["1", "yes", "1.50"][i % 3]} for i in range(6)],
}
SPLITS = {"both": (2, 2, 2), "source": (6, 0, 0), "target": (0, 3, 3)}


def source(name: str, format: str, role: str, metric: str = "loss") -> Source:
    rows = tuple(to_row(record, format) for record in RECORDS[format])
    train, select, _ = SPLITS[role]
    parts = {
        "train": rows[:train],
        "select": rows[train : train + select],
        "test": rows[train + select :],
    }
    return Source(name, "x", format, metric, parts)


def rows_of(sources: Sources) -> dict:
    return {name: one.rows for name, one in sources.items()}


@pytest.mark.parametrize("format", RECORDS)
def test_every_row_comes_back_to_its_place(tmp_path, format):
    """In the order of the sources, which is not that of their names."""
    named = {
        "z/cluster-001": source("z/cluster-001", format, "source"),
        "no": source("no", format, "both", "exact_match"),
        "a b: 'c'": source("a b: 'c'", format, "target", "answer"),
    }
    write_task_folder(tmp_path / "tasks", Sources(named))
    found = load_sources([str(tmp_path / "tasks")])
    assert list(found) == list(named) and rows_of(found) == rows_of(Sources(named))
    assert found.data_hashes() == Sources(named).data_hashes()
    assert found.targets == ["no", "a b: 'c'"] and found.trainable == ["z/cluster-001", "no"]
    assert [one.metric for one in found.values()] == ["loss", "exact_match", "answer"]


def test_the_folder_can_be_moved(tmp_path):
    named = {"one": source("one", "text", "both")}
    write_task_folder(tmp_path / "run.part/tasks", Sources(named))
    (tmp_path / "run.part").rename(tmp_path / "run")
    assert rows_of(load_sources([str(tmp_path / "run/tasks")])) == rows_of(Sources(named))


def test_roles_and_files_are_what_there_is(tmp_path):
    named = {role: source(role, "text", role) for role in SPLITS}
    write_task_folder(tmp_path, Sources(named))
    tasks = [yaml.safe_load(file.read_text()) for file in sorted(tmp_path.glob("*.yaml"))]
    assert [task["role"] for task in tasks] == list(SPLITS)
    files = sorted(file.name.split("-")[1] for file in tmp_path.glob("rows/*"))
    assert files == [
        "both.select.jsonl", "both.test.jsonl", "both.train.jsonl", "source.train.jsonl",
        "target.select.jsonl", "target.test.jsonl",
    ]  # fmt: skip


def test_written_again_it_is_the_same(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    named = Sources({"one": source("one", "text", "both")})
    for _ in range(2):
        write_task_folder(tmp_path, named)
    assert len(list(tmp_path.glob("*.yaml"))) == 1 and not caplog.messages


def test_names_that_no_folder_can_have_are_refused(tmp_path):
    long = "x" * 195 + "/cluster-000"
    with pytest.raises(GradexError, match="too long"):
        write_task_folder(tmp_path, Sources({long: source(long, "text", "both")}))
