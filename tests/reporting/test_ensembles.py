"""The section on ensembles: gains are told as they are, also when there is none."""

import pytest

from gradex.reporting.ensembles import MOST_NAMES, ensemble_sentence, ensemble_table
from gradex.reporting.html import render

HOSTILE = "<script>x</script>"


@pytest.fixture
def found() -> dict:
    return {
        "target": "sort",
        "members": 2,
        "steps": 1000,
        "groups": [["a", "b"], ["c"]],
        "weights": {"group-0": 0.75, "group-1": 0.25},
        "best": "group-0",
        "base": {"loss": 1.0, "exact_match": 0.1},
        "one": {"loss": 0.5, "exact_match": 0.5},
        "one_longer": {"loss": 0.4, "exact_match": 0.6},
        "best_member": {"loss": 0.35, "exact_match": 0.7},
        "ensemble": {"loss": 0.3, "exact_match": 0.8},
    }


def test_a_gain_is_that_over_the_better_single_adapter(found):
    assert "gains 25% over the better" in ensemble_sentence(found)
    assert "Its best member alone, group-0, gives 0.350." in ensemble_sentence(found)


@pytest.mark.parametrize(
    ("loss", "says"),
    [(0.4, "gains nothing over"), (0.399, "gains nothing over"), (0.5, "gains nothing, its loss")],
)
def test_no_gain_is_admitted(found, loss, says):
    found["ensemble"]["loss"] = loss
    assert says in ensemble_sentence(found)
    assert "Its best member alone, group-0, is no worse: 0.35" in ensemble_sentence(found)


def test_an_ensemble_of_one_is_called_that(found):
    found |= {"weights": {"group-0": 1.0, "group-1": 0.0}, "ensemble": found["best_member"]}
    assert "All its weight is on group-0: this adapter alone does the same." in ensemble_sentence(
        found
    )
    assert [row["passes"] for row in ensemble_table(found)["rows"]] == [1] * 5


def test_what_was_not_measured_gives_no_sentence(found):
    found["one"]["loss"] = None
    assert ensemble_sentence(found) == "" and ensemble_sentence({}) == ""
    assert [row["best"] for row in ensemble_table(found)["rows"]] == [False] * 4 + [True]
    assert ensemble_table({}) == {}


def test_long_groups_are_cut(found):
    found["groups"][0] = [f"s{i}" for i in range(MOST_NAMES + 1200)]
    assert ensemble_table(found)["groups"][0]["sources"].endswith("s11, and 1,200 more")


def test_the_page_has_the_section_where_there_is_an_ensemble(report, found):
    assert "One adapter a group" not in render(report)
    page = render(report | {"ensemble": found})
    assert "One adapter a group" in page and "2,000" in page and "exact match" in page


def test_names_are_text(report, found):
    found |= {"target": HOSTILE, "groups": [[HOSTILE], ["c"]]}
    assert "<script>" not in render(report | {"ensemble": found})
