"""Tasks: what is declared is what is read, and each mistake in a YAML is told with its key."""

from dataclasses import fields
from pathlib import Path

import pytest

from gradex.data.tasks import YAML_KEYS, Task, find_tasks, is_place, read_task
from gradex.errors import GradexError

FULL = {
    "name": "trec/fine: 1.0", "path": "rows.jsonl", "format": "prompt_completion",
    "columns": {"prompt": "inputs", "completion": "targets"}, "metric": "answer", "role": "both",
    "select": "rows.select.jsonl", "test": "rows.test.jsonl", "source_column": "skill",
    "group_by": "question", "config": "main", "split": "train",
}  # fmt: skip


def test_every_key_is_read(write):
    path = Path(write("tasks/a.yaml", FULL))
    task = read_task(path, named=True)
    files = {key: str(path.parent / FULL[key]) for key in ("path", "select", "test")}
    assert task == Task(where=str(path), named=True, **{**FULL, **files})
    assert set(YAML_KEYS) == set(FULL)
    assert {f.name for f in fields(Task)} == {*YAML_KEYS, "where", "named"}


def test_defaults(write):
    task = read_task(Path(write("trec.yaml", {"path": "../x.jsonl", "select": None})), named=False)
    assert (task.name, task.format, task.metric, task.role) == ("trec", "auto", "loss", "both")
    assert task.select is None


def test_paths_are_seen_from_the_folder_of_the_yaml(write, tmp_path):
    task = read_task(Path(write("tasks/a.yaml", {"path": "../data/x.jsonl"})), named=True)
    assert Path(task.path).resolve() == tmp_path.resolve() / "data/x.jsonl"
    absolute = str(tmp_path / "y.jsonl")
    assert read_task(Path(write("b.yaml", {"path": absolute})), named=True).path == absolute
    hub = read_task(Path(write("c.yaml", {"path": "hub:owner/name"})), named=True)
    assert hub.path == "hub:owner/name"


MISTAKES = {
    "unknown key": ({"path": "x", "formt": "text"}, "unknown key 'formt'; known are: name, path"),
    "no path": ({"name": "a"}, "key 'path' is missing"),
    "null path": ({"path": None}, "key 'path' is missing"),
    "empty path": ({"path": ""}, "key 'path' is missing"),
    "number as name": ({"path": "x", "name": 123}, "'name' is 123, expected text; put it in quot"),
    "yes as name": ({"path": "x", "name": True}, "'name' is True, expected text"),
    "number as path": ({"path": 5}, "key 'path' is 5"),
    "empty name": ({"path": "x", "name": ""}, "found the source name ''"),
    "upwards": ({"path": "x", "name": "../a"}, "would leave the store"),
    "absolute": ({"path": "x", "name": "/etc"}, "would leave the store"),
    "format": ({"path": "x", "format": "flan"}, "unknown format 'flan'; known are: auto, messages"),
    "metric": ({"path": "x", "metric": "bleu"}, "unknown metric 'bleu'; known are: loss"),
    "role": ({"path": "x", "role": "judge"}, "unknown role 'judge'; known are: both, source"),
    "half": ({"path": "x", "select": "y"}, "`select` and `test` go together"),
    "useless": ({"path": "x", "role": "source", "select": "y", "test": "z"}, "no use; drop them"),
    "columns": ({"path": "x", "columns": ["a"]}, r"'columns' is \['a'\], expected a mapping"),
    "ours": ({"path": "x", "columns": {"prmpt": "a"}}, "unknown column of ours 'prmpt'; known"),
    "theirs": ({"path": "x", "columns": {"prompt": None}}, "'columns.prompt' is None"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_file_and_the_key(case, write):
    content, message = MISTAKES[case]
    with pytest.raises(GradexError, match=f"a\\.yaml: .*{message}"):
        read_task(Path(write("a.yaml", content)), named=True)


def test_yaml_that_is_no_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("- path\n")
    with pytest.raises(GradexError, match=r"a\.yaml: found list"):
        find_tasks(["a.yaml"])


def test_a_folder_gives_its_yamls_in_the_order_of_their_files(write):
    for name in ("b", "a", "c"):
        write(f"tasks/{name}.yaml", {"path": "x.jsonl", "name": f"source {name}"})
    write("tasks/rows.jsonl", [])
    tasks = find_tasks(["tasks"])
    assert [task.name for task in tasks] == ["source a", "source b", "source c"]
    assert not any(task.named for task in tasks)


def test_a_folder_without_yamls_gives_its_data_files(write):
    from datasets import Dataset

    for name in ("b.jsonl", "a.csv", "notes.md", ".hidden"):
        write(f"data/{name}", "")
    Dataset.from_list([{"text": "a"}]).save_to_disk("data/saved.v1")
    tasks = find_tasks(["data"])
    assert [task.name for task in tasks] == ["a", "b", "saved.v1"]
    assert [task.where for task in tasks] == [task.path for task in tasks]


def test_places_keep_their_order(write):
    write("folder/z.yaml", {"path": "z.jsonl"})
    yaml, data = write("y.yml", {"path": "y.jsonl"}), write("x.jsonl", [])
    tasks = find_tasks([yaml, "folder", data, "hub:owner/name"])
    assert [task.name for task in tasks] == ["y", "z", "x", "owner/name"]
    assert [task.named for task in tasks] == [True, False, True, True]


def test_a_saved_data_set_is_one_source(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list([{"text": "a"}])
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data}).save_to_disk(tmp_path / "two")
    assert [task.name for task in find_tasks(["one", "two"])] == ["one", "two"]


def test_a_name_is_taken_once(write):
    write("one/a.jsonl", [])
    write("two/a.csv", "")
    with pytest.raises(GradexError, match=r"a\.csv: the source name 'a' is taken by .*a\.jsonl"):
        find_tasks(["one", "two"])


def test_places_that_hold_nothing(tmp_path):
    with pytest.raises(GradexError, match=r"--tasks nowhere: no such file .*gradex init DIR"):
        find_tasks(["nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(GradexError, match=r"--target empty: found neither YAMLs nor data files"):
        find_tasks(["empty"], "--target")


@pytest.mark.parametrize("text", ["a.yaml", "a.jsonl", "a.parquet", "a.pkl", "hub:a/b", "folder"])
def test_places(text, tmp_path):
    (tmp_path / "folder").mkdir()
    assert is_place(text)


@pytest.mark.parametrize("text", ["sort", "super_glue/record:1.0.2", "yaml", "nowhere"])
def test_names_are_no_places(text):
    assert not is_place(text)
