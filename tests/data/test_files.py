"""One set of records, whatever kind of file it is read from; what is broken names its place."""

import csv
import json
import pickle

import pytest

from gradex.data.files import READERS, read_records
from gradex.data.formats import EXTRA_CELLS
from gradex.errors import GradexError

RECORDS = [
    {"prompt": "Straße, 東京 🎉", "completion": "a\nb"},
    {"prompt": 'says "hi", twice', "completion": " line\u2028separator "},
    {"prompt": "plain", "completion": "12"},
]


def as_csv(path, records):
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, records[0])
        table.writeheader()
        table.writerows(records)


def as_parquet(path, records):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(records), path)


WRITERS = {
    ".jsonl": lambda path, records: path.write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8"
    ),
    ".ndjson": lambda path, records: path.write_text(
        "\r\n".join(map(json.dumps, records)) + "\r\n\r\n", newline=""
    ),
    ".json": lambda path, records: path.write_text(json.dumps(records, indent=2)),
    ".csv": as_csv,
    ".parquet": as_parquet,
}


def records_at(path, **kwargs):
    return [record for _, record in read_records(str(path), **kwargs)]


def places_at(path, **kwargs):
    return [place for place, _ in read_records(str(path), **kwargs)]


@pytest.fixture
def saved(tmp_path):
    """saved(records) and saved({"train": records, ...}): a folder of `save_to_disk`."""
    from datasets import Dataset, DatasetDict

    def make(content, format=None):
        if isinstance(content, dict):
            data = DatasetDict({k: Dataset.from_list(v) for k, v in content.items()})
        else:
            data = Dataset.from_list(content).with_format(format)
        data.save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return make


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_file_holds_the_same_records(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, RECORDS)
    assert records_at(path) == RECORDS
    places = places_at(path)
    assert len(set(places)) == len(RECORDS)
    assert all(place.startswith(str(path)) for place in places)


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv"])
def test_a_byte_order_mark_is_no_content(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, RECORDS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert records_at(path) == RECORDS


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_windows_line_ends(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert [r["completion"] for r in records_at(path)] == ["b", "d"]


def test_a_json_list_may_lie_under_the_key_data(write):
    assert records_at(write("a.json", {"version": 1, "data": RECORDS})) == RECORDS


def test_a_json_file_may_hold_one_object_a_line(write):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    assert records_at(write("a.json", lines)) == RECORDS


def test_blank_lines_are_skipped_and_counted(write):
    path = write("a.jsonl", '\n{"x": 1}\n  \n{"x": 2}\n')
    assert places_at(path) == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize("format", [None, "numpy", "torch"])
def test_saved_data_set_is_read_as_plain_values(saved, format):
    [record] = records_at(saved([{"text": "fine", "label": 3}], format))
    assert record == {"text": "fine", "label": 3}
    assert type(record["label"]) is int


def test_saved_splits(saved):
    folder = saved({"validation": RECORDS[:1], "train": RECORDS[1:]})
    assert records_at(folder) == RECORDS[1:]
    assert records_at(folder, split="validation") == RECORDS[:1]
    with pytest.raises(GradexError, match="unknown split 'test'; known are: validation, train"):
        records_at(folder, split="test")


def test_without_a_train_split_the_first_is_read(saved):
    assert records_at(saved({"dev": RECORDS})) == RECORDS


def test_class_labels_are_their_numbers(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_list([{"text": "fine", "label": 1}], features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    for name in ("a.parquet", "saved"):
        assert records_at(tmp_path / name) == [{"text": "fine", "label": 1}]


@pytest.fixture
def hub(monkeypatch):
    """hub(answer): what `datasets.load_dataset` gives; returns the calls it got."""

    def install(answer):
        calls = []

        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        return calls

    return install


def test_hub_ids_are_streamed(hub):
    calls = hub({"train": iter(RECORDS), "test": iter([])})
    rows = list(read_records("hub:owner/name", config="main"))
    assert [record for _, record in rows] == RECORDS
    assert rows[0][0] == "hub:owner/name row 0"
    assert calls == [(("owner/name", "main"), {"streaming": True})]


def test_hub_split(hub):
    hub({"train": RECORDS[:1], "test": RECORDS[1:]})
    assert records_at("hub:owner/name", split="test") == RECORDS[1:]
    with pytest.raises(GradexError, match=r"hub:owner/name: unknown split 'dev'; known are: train"):
        records_at("hub:owner/name", split="dev")


def test_hub_that_cannot_be_reached(hub):
    hub(ConnectionError("no route\nstack"))
    with pytest.raises(GradexError, match=r"^hub:a/b: cannot be loaded \(no route\)$"):
        records_at("hub:a/b")


def test_hub_that_breaks_while_it_streams(hub):
    def broken():
        yield RECORDS[0]
        raise TimeoutError("slow")

    hub({"train": broken()})
    with pytest.raises(GradexError, match=r"hub:a/b: cannot be loaded \(slow\)"):
        records_at("hub:a/b")


BROKEN = {
    "syntax": ("a.jsonl", '{"x": 1}\n{"x": 2\n', r"a\.jsonl:2: not valid JSON .*one object"),
    "not an object": ("a.jsonl", '{"x": 1}\n[1, 2]\n', r"a\.jsonl:2: found list, expected an obj"),
    "null line": ("a.jsonl", "null\n", r"a\.jsonl:1: found NoneType"),
    "deep": ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: JSON nested too deeply"),
    "deep list": ("a.json", "[" * 100_000, r"a\.json: JSON nested too deeply"),
    "long number": ("a.jsonl", '{"x": ' + "1" * 5000 + "}", r"a\.jsonl:1: JSON that cannot be"),
    "json syntax": ("a.json", '[\n{"x": 1},\n]', r"a\.json:[23]: not valid JSON"),
    "empty json": ("a.json", "", r"a\.json:1: not valid JSON"),
    "json object": ("a.json", {"x": 1}, r"a\.json: found dict, expected a list of objects"),
    "json items": ("a.json", [{"x": 1}, 2], r"a\.json\[1\]: found int, expected an object"),
    "latin-1": ("a.csv", "x,y\nfine,fine\ncaf\xe9,1".encode("latin-1"), r"a\.csv:3: not UTF-8"),
    "utf-16": ("a.json", "[]".encode("utf-16"), r"a\.json:1: not UTF-8 text \(byte 0xff\)"),
    "parquet": ("a.parquet", "no", r"a\.parquet: not a readable parquet file"),
    "suffix": ("a.xlsx", "", r"unknown kind of file '.xlsx'; known are: .jsonl"),
    "no suffix": ("rows", "", r"unknown kind of file 'rows'"),
    "pickle": ("a.pkl", "no", r"a\.pkl: a pickle file can run code .*--allow_pickle"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_with_its_place(case, write):
    name, content, message = BROKEN[case]
    with pytest.raises(GradexError, match=message):
        records_at(write(name, content))


def test_the_wrong_byte_is_found_behind_many_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": "fine"}\n' * 5000 + b'{"x": "\xff"}\n')
    with pytest.raises(GradexError, match=r"a\.jsonl:5001: not UTF-8 text \(byte 0xff\)"):
        records_at(path)


def test_missing_file_hints_at_the_hub():
    with pytest.raises(GradexError, match=r"owner/name: no such file \(.*hub:owner/name"):
        records_at("owner/name")


def test_a_folder_that_is_no_data_set(tmp_path):
    with pytest.raises(GradexError, match="not a saved data set"):
        records_at(tmp_path)


@pytest.mark.parametrize("as_frame", [False, True])
def test_pickles_only_where_they_are_allowed(tmp_path, as_frame):
    import pandas

    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(pandas.DataFrame(RECORDS) if as_frame else RECORDS))
    with pytest.raises(GradexError, match="allow_pickle"):
        records_at(path)
    assert records_at(path, allow_pickle=True) == RECORDS


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no", "not a readable pickle"), (pickle.dumps({"a": 1}), "found dict, expected a list")],
)
def test_pickles_that_hold_something_else(tmp_path, content, message):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(GradexError, match=message):
        records_at(path, allow_pickle=True)


def test_csv_cells(write):
    path = write("a.csv", "prompt,completion\nonly one\none,two,three\n")
    short, long = records_at(path)
    assert short == {"prompt": "only one", "completion": None}
    assert EXTRA_CELLS in long, "what has no column is kept, so that the row can be refused"


def test_csv_with_a_very_long_cell(write):
    path = write("a.csv", f"text\n{'x' * 200_000}\n")
    assert len(records_at(path)[0]["text"]) == 200_000
