"""The card of exported rows: configs for load_dataset, and text that no name can break."""

import pytest
import yaml

from gradex.reporting.dataset_card import CardRow, dataset_card

NASTY = "a|b```\n---\n# <script>x</script>"
ROWS = [
    CardRow("a b", "a%20b", "data/a%20b.jsonl", 1200, ("messages",)),
    CardRow("c", "c", "data/c.jsonl", 3, ("messages",)),
]


def card(rows: list[CardRow] = ROWS, **changes: object) -> str:
    about = {
        "target": "sort", "method": "forward", "base": "owner/model",
        "trainers": {"trl": "trl sft --config trl.yaml"}, "left_out": {},
        "command": "gradex run/config.yaml", "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    return dataset_card(rows, **about | changes)


def configs(text: str) -> dict[str, list[str]]:
    content = yaml.safe_load(text.split("---\n")[1])
    return {one["config_name"]: one["data_files"][0]["path"] for one in content["configs"]}


def test_a_config_for_all_and_one_for_each():
    assert configs(card()) == {
        "default": ["data/a%20b.jsonl", "data/c.jsonl"],
        "a%20b": ["data/a%20b.jsonl"],
        "c": ["data/c.jsonl"],
    }


def test_a_source_called_default_is_not_the_default():
    rows = [CardRow("default", "default", "data/default.jsonl", 3, ("messages",)), ROWS[1]]
    assert configs(card(rows))["source default"] == ["data/default.jsonl"]
    assert len(configs(card(rows))["default"]) == 2


def test_rows_of_different_columns_have_no_config_for_all():
    rows = [ROWS[0], CardRow("t", "t", "data/t.jsonl", 3, ("text",))]
    assert set(configs(card(rows))) == {"a%20b", "t"}
    assert 'load_dataset("path/to/this/folder", split' not in card(rows)


def test_the_table_tells_shares_where_there_are_some():
    assert "| `a b` | 1,200 | `messages` |" in card()
    rows = [
        CardRow("a", "a", "data/a.jsonl", 9, ("messages",), 0.97, 97, "mixture/a.jsonl"),
        CardRow("b", "b", "data/b.jsonl", 9, ("messages",), 0.0, 0),
    ]
    text = card(rows)
    assert "| `a` | 9 | 97% | 97 | `messages` |\n| `b` | 9 | 0% | 0 | `messages` |" in text
    assert configs(text)["mixture by shares"] == ["mixture/a.jsonl"]


@pytest.mark.parametrize("field", ["target", "method", "base"])
def test_nothing_that_is_told_means_anything(field):
    text = card(**{field: NASTY})
    assert text.count("\n---\n") == 1 and "\n# <script>" not in text
    assert configs(text) == configs(card())


def test_trainers_and_why_not():
    text = card(trainers={}, left_out={"trl": "'a' holds texts with a class"})
    assert "Not for `trl`: `'a' holds texts with a class`." in text
    assert "In this folder" not in text
    assert "## Train" not in card(trainers={})
