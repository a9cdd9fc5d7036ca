"""Sources: which rows are read, on which side they are, and what a person is told about them."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.data.formats import to_row
from gradex.data.sources import SPLITS, SplitRule, load_sources
from gradex.data.subsets import decode_name, encode_name
from gradex.errors import GradexError


def sides(source):
    """Row id -> split."""
    return {row.id: split for split in SPLITS for row in source.rows[split]}


def prompts(source, split):
    return [row.prompt[0][1] for row in source.rows[split]]


def a_row(prompt, completion="done", **rest):
    return to_row({"prompt": prompt, "completion": completion, **rest}, "prompt_completion")


# ---- formats


FORMATTED = {
    "prompt_completion": {"prompt": "q{i}", "completion": "a{i}"},
    "alpaca": {"instruction": "q{i}", "input": "", "output": "a{i}"},
    "text": {"text": "q{i} a{i}"},
    "labelled_text": {"text": "q{i}", "label": "{i}"},
}


@pytest.mark.parametrize("format", FORMATTED)
def test_auto_takes_the_format_of_the_columns(format, write):
    rows = [{k: v.format(i=i) for k, v in FORMATTED[format].items()} for i in range(40)]
    source = load_sources([write("a.jsonl", rows)])["a"]
    assert source.format == format
    assert sum(map(len, source.rows.values())) == 40
    assert source.bad == {}


def test_columns_are_mapped_to_ours(write, pairs):
    flan = [{"inputs": r["prompt"], "targets": r["completion"], "task": "x"} for r in pairs(40)]
    write("flan.jsonl", flan)
    write("plain.jsonl", pairs(40))
    columns = {"prompt": "inputs", "completion": "targets"}
    mapped = load_sources([write("a.yaml", {"path": "flan.jsonl", "columns": columns})])["a"]
    assert mapped.data_hash == load_sources(["plain.jsonl"])["plain"].data_hash


def test_columns_may_be_swapped(write, pairs):
    write("a.jsonl", pairs(40))
    columns = {"prompt": "completion", "completion": "prompt"}
    source = load_sources([write("a.yaml", {"path": "a.jsonl", "columns": columns})])["a"]
    row = source.rows["train"][0]
    assert row.completion.endswith("?")
    assert "says" in row.prompt[0][1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"columns": {"prompt": "inputs"}}, "key 'columns.prompt' names the column 'inputs', but "),
        ({"source_column": "skill"}, r"key 'source_column' names the column 'skill', but .*:1 has"),
        ({"group_by": "question"}, "key 'group_by' names the column 'question'.* has completion, "),
        ({"format": "text"}, r"a\.jsonl:1: column 'text' is missing for format text"),
    ],
)
def test_columns_that_are_not_there(extra, message, write, pairs):
    write("a.jsonl", pairs(3))
    with pytest.raises(GradexError, match=message):
        load_sources([write("a.yaml", {"path": "a.jsonl", **extra})])


# ---- splits


def test_every_row_is_on_one_side_in_the_order_of_the_file(write, pairs):
    source = load_sources([write("a.jsonl", pairs(200))])["a"]
    assert len(sides(source)) == sum(map(len, source.rows.values())) == 200
    for split in SPLITS:
        numbers = [int(p.split()[1][:-1]) for p in prompts(source, split)]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("held_out", [0.1, 0.2, 0.5])
def test_the_held_out_share(held_out, write, pairs):
    path = write("a.jsonl", pairs(3000))
    rows = load_sources([path], rule=SplitRule(held_out=held_out))["a"].rows
    for split in ("select", "test"):
        assert len(rows[split]) / 3000 == pytest.approx(held_out / 2, abs=0.02)


def test_adding_rows_or_sources_moves_no_row(write, pairs):
    first = load_sources([write("one/a.jsonl", pairs(100))])["a"]
    more = [*pairs(50, "new"), *reversed(pairs(100))]
    both = load_sources([write("two/a.jsonl", more), write("two/b.jsonl", pairs(100, "other"))])
    assert sides(first).items() <= sides(both["a"]).items()
    assert both["a"].data_hash != first.data_hash


def test_the_seed_deals_anew(write, pairs):
    path = write("a.jsonl", pairs(100))
    dealt = [sides(load_sources([path], rule=SplitRule(seed=s))["a"]) for s in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=10), st.text("ab", min_size=1, max_size=3), st.integers(0, 5))
def test_one_prompt_is_never_on_two_sides(prompt, completion, seed):
    rule = SplitRule(held_out=0.5, seed=seed)
    one, two = a_row("ask " + prompt, completion), a_row("ask " + prompt, completion * 2)
    assert rule.side(one, "both") == rule.side(two, "both")


def test_one_prompt_in_two_sources_is_on_one_side(write):
    rows = [[{"prompt": f"q{i}", "completion": f"{name}{i}"} for i in range(100)] for name in "ab"]
    sources = load_sources([write("a.jsonl", rows[0]), write("b.jsonl", rows[1])])
    for split in SPLITS:
        assert prompts(sources["a"], split) == prompts(sources["b"], split)


def test_rows_without_a_prompt_are_dealt_one_by_one(write):
    texts = [{"text": f"story {i}"} for i in range(200)]
    unasked = [{"prompt": "", "completion": f"story {i}"} for i in range(200)]
    sources = load_sources([write("a.jsonl", texts), write("b.jsonl", unasked)])
    for source in sources.values():
        assert all(0 < len(source.rows[split]) < 200 for split in SPLITS)


def test_a_group_stays_on_one_side(write):
    rows = [{"prompt": f"q{i}", "completion": "a", "question": i // 5} for i in range(300)]
    write("a.jsonl", rows)
    source = load_sources([write("a.yaml", {"path": "a.jsonl", "group_by": "question"})])["a"]
    groups = [{row.group for row in source.rows[split]} for split in SPLITS]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 60


def test_roles_of_one_row():
    rows = [a_row(f"ask {i}") for i in range(200)]
    for row in rows:
        assert SplitRule().side(row, "source") == "train"
        assert SplitRule().side(row, "target") == SplitRule(held_out=1.0).side(row, "both")
    tested = {row.id for row in rows if SplitRule().side(row, "both") == "test"}
    assert tested < {row.id for row in rows if SplitRule().side(row, "target") == "test"}


def test_explicit_select_and_test_files(write, pairs):
    for start, name in enumerate(("train", "select", "test")):
        write(f"{name}.jsonl", pairs(10, start=start * 10))
    content = {"path": "train.jsonl", "select": "select.jsonl", "test": "test.jsonl"}
    rows = load_sources([write("a.yaml", content)])["a"].rows
    assert {split: len(rows[split]) for split in SPLITS} == dict.fromkeys(SPLITS, 10)
    assert {row.id for row in rows["test"]} == {
        to_row(r, "prompt_completion").id for r in pairs(10, start=20)
    }


def test_a_target_with_its_own_files_is_never_trained_on(write, pairs):
    for start, name in enumerate(("train", "select", "test")):
        write(f"{name}.jsonl", pairs(10, start=start * 10))
    content = {"path": "train.jsonl", "select": "select.jsonl", "test": "test.jsonl"}
    other = write("other.jsonl", pairs(50, "other"))
    declared = load_sources([other, write("a.yaml", {**content, "role": "target"})])
    named = load_sources([other], [write("a.yaml", content)])
    for sources in (declared, named):
        assert sources["a"].is_target
        assert sources["a"].rows["train"] == ()
        assert sources.trainable == ["other"]


@pytest.mark.parametrize(
    ("role", "trained", "measured"),
    [("source", True, False), ("target", False, True), ("both", True, True)],
)
def test_roles(role, trained, measured, write, pairs):
    write("a.jsonl", pairs(60))
    other = write("other.jsonl", pairs(60, "other"))
    sources = load_sources([write("a.yaml", {"path": "a.jsonl", "role": role}), other])
    assert ("a" in sources.trainable, "a" in sources.targets) == (trained, measured)


# ---- targets


def test_every_source_is_a_target_unless_some_are_named(write, pairs):
    places = [write(f"{name}.jsonl", pairs(60, name)) for name in "abc"]
    assert load_sources(places).targets == ["a", "b", "c"]
    sources = load_sources(places, ["b"])
    assert sources.targets == ["b"]
    assert sources.trainable == ["a", "b", "c"]
    assert len(sources["a"].rows["train"]) == 60


def test_a_target_may_be_a_file(write, pairs):
    train, wanted = write("a.jsonl", pairs(60)), write("mine.jsonl", pairs(60, "mine"))
    sources = load_sources([train], [wanted])
    assert sources.targets == ["mine"]
    assert sources.trainable == ["a"]


def test_a_source_s_name_wins_over_a_folder_of_that_name(write, pairs):
    place = write("a.jsonl", pairs(60))
    write("a/notes.md", "")
    assert load_sources([place], ["a"]).targets == ["a"]


def test_only_the_named_value_of_a_source_column_is_a_target(write, pairs):
    rows = [{**r, "skill": s} for s in ("add", "sort") for r in pairs(60, s)]
    write("a.jsonl", rows)
    sources = load_sources(
        [write("a.yaml", {"path": "a.jsonl", "source_column": "skill"})], ["add"]
    )
    assert sources.targets == ["add"]
    assert len(sources["sort"].rows["train"]) == 60


def test_a_source_that_is_only_measured_has_no_use_beside_named_targets(write, pairs):
    write("a.jsonl", pairs(60))
    task = write("a.yaml", {"path": "a.jsonl", "role": "target"})
    sources = load_sources([task, write("b.jsonl", pairs(60, "b"))], ["b"])
    assert list(sources) == ["b"]


def test_unknown_targets(write, pairs):
    place = write("a.jsonl", pairs(60))
    with pytest.raises(GradexError, match="--target: unknown source 'b'; known are: a"):
        load_sources([place], ["b"])
    rows = [{**r, "skill": "add"} for r in pairs(60)]
    write("c.jsonl", rows)
    column = write("c.yaml", {"path": "c.jsonl", "source_column": "skill"})
    with pytest.raises(GradexError, match="--target: unknown source 'b'; known are: add"):
        load_sources([column], ["b"])
    with pytest.raises(GradexError, match="the name 'a' is also a source's"):
        load_sources([place], [write("other/a.jsonl", pairs(60))])


def test_a_named_target_that_cannot_be_measured(write, pairs):
    big, small = write("big.jsonl", pairs(100)), write("small.jsonl", pairs(1, "small"))
    with pytest.raises(GradexError, match=r"--target small: found . select and . test rows in"):
        load_sources([big, small], ["big", "small"])


def test_no_target_at_all(write, pairs):
    write("a.jsonl", pairs(60))
    task = write("a.yaml", {"path": "a.jsonl", "role": "source"})
    with pytest.raises(GradexError, match="no target: no source holds both"):
        load_sources([task])


def test_no_training_row_at_all(write, pairs):
    write("a.jsonl", pairs(60))
    with pytest.raises(GradexError, match="none of the sources has a training row"):
        load_sources([write("a.yaml", {"path": "a.jsonl", "role": "target"})])


# ---- one file, many sources


def test_source_column(write, pairs):
    names = ["super_glue/record:1.0.2", "with space", 7, "été"]
    rows = [{**r, "skill": name} for name in names for r in pairs(60, str(name))]
    write("a.jsonl", rows)
    task = write("a.yaml", {"path": "a.jsonl", "source_column": "skill"})
    sources = load_sources([task])
    assert list(sources) == sorted(map(str, names))
    for name in map(str, names):
        alone = load_sources([write(f"alone.{name!r:.3}.jsonl".replace("/", ""), pairs(60, name))])
        assert sides(sources[name]) == sides(next(iter(alone.values())))
        assert "/" not in encode_name(name)
        assert decode_name(encode_name(name)) == name


def test_rows_that_belong_to_no_source(write, pairs):
    rows = [{**r, "skill": s} for s in ("add", None, "") for r in pairs(30, str(s))]
    write("a.jsonl", rows)
    sources = load_sources([write("a.yaml", {"path": "a.jsonl", "source_column": "skill"})])
    assert list(sources) == ["add"]
    [note] = sources.notes
    assert note.endswith(
        "a.yaml: rows that belong to no source: 60 x no value in source_column 'skill'"
    )


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../b", "a\nb", "~root", "x" * 300])
def test_source_names_that_would_make_no_folder(name, write, pairs):
    write("a.jsonl", [{**pairs(1)[0], "skill": name}])
    with pytest.raises(GradexError, match=r"a\.jsonl:1: (found )?the source name"):
        load_sources([write("a.yaml", {"path": "a.jsonl", "source_column": "skill"})])


def test_a_value_that_another_source_is_called(write, pairs):
    write("one.jsonl", [{**r, "skill": "b"} for r in pairs(30)])
    task = write("a.yaml", {"path": "one.jsonl", "source_column": "skill"})
    with pytest.raises(GradexError, match="the source name 'b' is taken by"):
        load_sources([write("b.jsonl", pairs(30, "b")), task])


# ---- dirt


def test_bad_rows_are_counted_with_their_reason(write, pairs):
    bad = [{"prompt": "x", "completion": ""}] * 2 + [{"prompt": "y", "completion": [1]}]
    sources = load_sources([write("a.jsonl", [*pairs(60), *bad, *pairs(3)])])
    counts = {
        "empty completion": 2,
        "completion is list, not text": 1,
        "a row the source holds already": 3,
    }
    assert sources["a"].bad == counts
    told = ", ".join(f"{count} x {reason}" for reason, count in counts.items())
    assert sources.notes == (f"a: rows left out: {told}",)


def test_csv_rows_with_too_many_cells_are_not_half_read(write, pairs):
    lines = "".join(f"{r['prompt']},{r['completion']}\n" for r in pairs(60))
    path = write("a.csv", f"prompt,completion\none, two,three\n{lines}")
    source = load_sources([path])["a"]
    assert source.bad == {"more cells than columns (quote cells that hold commas)": 1}


def test_an_empty_source_in_a_folder_is_left_out_with_a_note(write, pairs):
    write("data/empty.jsonl", "")
    write("data/hollow.jsonl", [{"prompt": "q", "completion": ""}] * 2)
    write("data/full.jsonl", pairs(60))
    sources = load_sources(["data"])
    assert list(sources) == ["full"]
    assert sources.notes == (
        "empty: no usable row in data/empty.jsonl; the source is left out",
        "hollow: no usable row in data/hollow.jsonl (2 x empty completion); the source is left out",
    )


@pytest.mark.parametrize("column", [{}, {"source_column": "skill"}])
def test_an_empty_source_that_is_named_is_an_error(column, write, pairs):
    write("empty.jsonl", "")
    named = write("empty.yaml", {"path": "empty.jsonl", **column})
    with pytest.raises(GradexError, match=r"empty: no usable row in .*give it rows or leave it"):
        load_sources([write("a.jsonl", pairs(60)), named])


def test_rows_on_two_sides_are_reported(write, pairs):
    for name, rows in {
        "train": pairs(10),
        "select": pairs(10, start=8),
        "test": pairs(10, start=17),
        "other": pairs(5, start=20),
    }.items():
        write(f"{name}.jsonl", rows)
    content = {"path": "train.jsonl", "select": "select.jsonl", "test": "test.jsonl"}
    task = write("a.yaml", content)
    sources = load_sources([task, write("b.yaml", {"path": "other.jsonl", "role": "source"})])
    assert set(sources.notes) == {
        "2 select rows of a have the prompt of a training row of a",
        "1 test rows of a have the prompt of a select row of it",
        "5 test rows of a have the prompt of a training row of b",
    }


def test_notes_are_logged(write, pairs, caplog):
    with caplog.at_level(logging.INFO):
        load_sources([write("a.jsonl", [*pairs(60), *pairs(1)])])
    assert "data: a: rows left out: 1 x a row the source holds already" in caplog.messages
    assert "1 targets; format prompt_completion for 1" in caplog.text


# ---- values


def test_sources_are_a_mapping_in_order(write, pairs):
    sources = load_sources([write(f"{name}.jsonl", pairs(60, name)) for name in "ba"])
    assert list(sources) == ["b", "a"]
    assert len(sources) == 2
    assert sources["a"].name == "a"
    assert "c" not in sources


def test_the_record_tells_every_row_s_side(write, pairs):
    sources = load_sources([write("a.jsonl", pairs(60))])
    record = sources.record()["a"]
    assert {i: s for s in SPLITS for i in record["splits"][s]} == sides(sources["a"])
    assert record["data_hash"] == sources["a"].data_hash
    assert record["metric"] == "loss"


def test_pickles_are_read_where_they_are_allowed(tmp_path, pairs):
    import pickle

    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(pairs(60)))
    with pytest.raises(GradexError, match="allow_pickle"):
        load_sources([str(path)])
    assert list(load_sources([str(path)], allow_pickle=True)) == ["a"]


def test_a_thousand_sources_of_one_file(write, pairs):
    rows = [{**r, "skill": f"skill {i % 1000}"} for i, r in enumerate(pairs(5000))]
    write("a.jsonl", rows)
    sources = load_sources([write("a.yaml", {"path": "a.jsonl", "source_column": "skill"})])
    assert len(sources) == 1000
    assert sum(len(s.rows[split]) for s in sources.values() for split in SPLITS) == 5000
