"""The report page: complete, self-contained, escaped, and honest about what it shows."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradex.reporting import sentences
from gradex.reporting.html import render, write_report

HOSTILE = '<script>alert("1")</script>'
SECTIONS = ("prediction", "path", "sources", "curves", "noticed", "reproduce")


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.unclosed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "link"):
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


def answer(report: dict) -> str:
    return re.search(r'<p class="says">(.*?)</p>', render(report))[1]


def set_losses(report: dict, *, all_sources: list, selection: list) -> None:
    report["outcomes"][1]["loss"] = all_sources
    report["outcomes"][2]["loss"] = selection


def test_writes_the_page_and_its_data(report: dict, tmp_path: Path) -> None:
    page = write_report(report, tmp_path / "new" / "folder")
    assert page.name == "report.html"
    assert json.loads((page.parent / "report.json").read_text()) == report


def test_every_section_is_there_and_every_tag_is_closed(full_report: dict) -> None:
    page = Page(render(full_report))
    assert page.unclosed == []
    assert {*SECTIONS, "transfer"} <= set(page.values("id"))


def test_ids_are_unique_and_every_reference_leads_somewhere(full_report: dict) -> None:
    full_report["verify"]["targets"] *= 2
    full_report["curves"] *= 2
    text = render(full_report)
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(" ".join(page.values("aria-labelledby")).split()) <= set(ids)
    inner = {value for value in page.values("href") if value.startswith("#")}
    assert inner and {value[1:] for value in inner} <= set(ids)
    painted = set(re.findall(r"url\(#([^)]*)\)", text))
    assert any("pattern" in tag for tag in page.tags) and painted <= set(ids)


def test_the_page_fetches_and_runs_nothing(full_report: dict) -> None:
    text = render(full_report)
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all(v.startswith(("#", "data:")) for v in page.values("src", "href", "xlink:href"))
    assert "://" not in text and "@import" not in text


def test_every_text_is_escaped(full_report: dict) -> None:
    report = full_report

    def spoilt(value: object) -> object:
        if isinstance(value, dict):
            return {key: spoilt(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoilt(item) for item in value]
        return value + HOSTILE if isinstance(value, str) else value

    report["outcomes"][2]["metric"] = {"name": "exact match", "values": [0.5]}
    hostile = spoilt(report)
    for row, plain in zip(hostile["outcomes"], report["outcomes"], strict=True):
        row["name"] = plain["name"]
    hostile["sources"][0]["bad"] = {HOSTILE: 1}
    hostile["versions"] = {HOSTILE: HOSTILE}
    text = render(hostile)
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;") > 20


def test_names_that_utf8_or_mathtext_cannot_hold(full_report: dict, tmp_path: Path) -> None:
    report = full_report
    for name in ("half \udc80 pair", r"$\frac{", "日本語", "two\nlines\x00", "{{ 'ab' * 2 }}"):
        report["selection"]["trace"][0]["added"] = name
        report["verify"]["targets"][0]["target"] = name
        report["transfer"]["sources"][0] = report["transfer"]["targets"][0]["target"] = name
        report["transfer"]["targets"][1]["helps"] = [name]
        assert "abab" not in write_report(report, tmp_path).read_text(encoding="utf-8")


def test_the_same_data_gives_the_same_bytes(report: dict, tmp_path: Path) -> None:
    first, second = (write_report(report, tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("missing", "section"),
    [
        ("verify", "prediction"),
        ("selection", "path"),
        ("sources", "sources"),
        ("curves", "curves"),
        ("warnings", "noticed"),
    ],
)
@pytest.mark.parametrize("empty", [None, "absent", "empty"])
def test_a_section_without_data_is_left_out(
    report: dict, missing: str, section: str, empty: str | None
) -> None:
    if empty == "absent":
        del report[missing]
    else:
        report[missing] = None if empty is None else type(report[missing])()
    ids = Page(render(report)).values("id")
    assert section not in ids
    assert set(SECTIONS) - {section} <= set(ids)


def test_a_report_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    page = Page(write_report({}, tmp_path).read_text(encoding="utf-8"))
    assert "section" not in page.tags and "table" not in page.tags


def test_a_number_that_is_none_or_nan_is_an_en_dash(report: dict, tmp_path: Path) -> None:
    report["sources"] = [{"name": "add", "rows": None, "loss": math.nan, "margin": math.inf}]
    report["verify"]["targets"][0] |= {"spearman": math.nan, "relative_error": None}
    report["verify"]["targets"][0]["points"][0]["estimate"] = math.nan
    report["curves"][0]["loss"] = [math.nan, 0.8, math.inf]
    text = write_report(report, tmp_path).read_text(encoding="utf-8")
    visible = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S)
    assert "<td>–</td>" in text
    assert not re.search(r"\b(nan|inf|None)\b", visible, re.IGNORECASE)
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["sources"][0]["loss"] is None


def test_the_sentence_says_what_won(report: dict) -> None:
    assert answer(report) == (
        "Fine-tuning on the 2 chosen sources gives a test loss of 0.31 on sort, against 0.52 "
        "on all 3 sources and 1.10 for the base model (mean of 3 seeds)."
    )


def test_the_sentence_admits_that_the_selection_lost(report: dict) -> None:
    set_losses(report, all_sources=[0.2], selection=[0.31])
    assert "(one seed). The selection is not better than training on all sources." in answer(report)
    report["outcomes"][0]["loss"] = [0.1]
    assert "not better than the base model as it is or training on all" in answer(report)


def test_a_tie_is_not_a_win(report: dict) -> None:
    set_losses(report, all_sources=[0.31], selection=[0.31])
    assert "not better" in answer(report)


def test_a_gap_within_the_noise_of_seeds_is_called_that(report: dict) -> None:
    set_losses(report, all_sources=[0.30, 0.40, 0.35], selection=[0.29, 0.39, 0.34])
    assert "(0.01) is smaller than the spread between seeds (0.05)" in answer(report)


def test_a_metric_that_disagrees_with_the_loss_is_said(report: dict) -> None:
    for row, value in zip(report["outcomes"], (0.1, 0.9, 0.8), strict=True):
        row["metric"] = {"name": "exact match", "values": [value]}
    assert "By exact match it is the other way round: 0.80 for the selection" in answer(report)
    for row in report["outcomes"]:
        row["metric"]["higher_is_better"] = False
    report["outcomes"][0]["metric"]["values"] = [0.95]
    assert "other way round" not in answer(report)


def test_runs_that_diverged_are_counted(report: dict) -> None:
    set_losses(report, all_sources=[0.5, math.nan, 0.5], selection=[0.3, 0.3, 0.3])
    assert "Left out of the means: 1 run that gave no finite loss." in answer(report)
    assert "2 of 3 seeds" in render(report)


def test_a_choice_that_was_not_fine_tuned_is_not_sold_as_a_result(report: dict) -> None:
    report["outcomes"] = []
    assert "there is no measured loss to report" in answer(report)
    assert "<strong>" not in render(report)


def test_a_change_to_first_order_is_not_called_an_estimate(report: dict) -> None:
    report["outcomes"] = []
    report["selection"] |= {"value": 0.5, "base_value": 0.9}
    assert "The estimate is 0.50, from 0.90 before." in answer(report)
    report["selection"]["method"] = "weigh_match"
    assert "The estimate is" not in answer(report)


def test_chosen_rows_are_counted_as_rows(report: dict) -> None:
    report["selection"] |= {"selected": ["sort", "max"], "rows": {"sort": 1200, "max": 1}}
    report["selection"] |= {"scores": {}, "weights": {}}
    assert "Fine-tuning on 1,201 chosen rows of 2 sources gives" in answer(report)
    assert "sort 1,200 rows" in render(report) and "max 1 row<" in render(report)
    assert "The score is" not in render(report)


def test_uncalibrated_estimates_are_called_ranks(report: dict) -> None:
    assert "they are ranks" in render(report)
    report["verify"]["calibrated"] = True
    text = render(report)
    assert "they are ranks" not in text and "smaller than that of the others" in text


def test_calibrated_estimates_name_their_anchors(full_report: dict) -> None:
    text = render(full_report)
    assert "calibrated on 8 other true fine-tunes, the anchors: the thin lines are 90%" in text
    assert "2 of 3 true losses lie in their 90% intervals." in text
    full_report["verify"]["anchors"] = None  # the run of calibrate is gone
    assert "The estimates are calibrated: the thin lines" in render(full_report)


def cells(text: str, method: str) -> list[str]:
    row = re.search(rf'<th class="name" scope="row">{method}\b.*?</tr>', text, re.S)[0]
    return re.findall(r"<td>(.*?)</td>", row)


def test_every_method_stands_beside_the_estimator(full_report: dict) -> None:
    text = render(full_report)
    glued = "0.83 (0.50\xa0to\xa01.00)"
    assert cells(text, "linear") == [glued, "0.74", "67%", "0.000"]
    assert cells(text, "cosine") == ["0.40", "–", "–", "0.125"]
    assert "No ngram: the store has no text" in text
    assert 'scope="row">sort</th>\n        <td>3</td>' not in text, "one target needs no table"


def test_a_measure_that_no_method_has_gets_no_column(full_report: dict) -> None:
    for method in full_report["verify"]["targets"][0]["methods"]:
        method |= {"coverage": None, "log_r2": None}
    text = render(full_report)
    assert "In 90% interval" not in text and "R² of log loss" not in text
    assert cells(text, "cosine") == ["0.40", "0.125"]


def test_another_targets_evidence_is_not_shown(full_report: dict) -> None:
    full_report["target"] = "max"
    text = render(full_report)
    assert "likeness of gradients" not in text and "Help and harm" not in text
    assert "of its norm" not in text and "Prediction beside truth" in text


def test_what_helps_and_hurts_is_said(full_report: dict) -> None:
    text = render(full_report)
    assert "sort is helped by sort and max, and hurt by add." in text and "halves the loss" in text
    full_report["transfer"]["unit"] = "uncalibrated"
    full_report["transfer"]["targets"][1] |= {"helps": list("abcde"), "hurts": []}
    text = render(full_report)
    assert "helped by a, b, c and 2 more sources, and hurt by no source clearly." in text
    assert "look at signs and order" in text and "halves" not in text


def test_the_trust_radius_is_one_sentence(full_report: dict) -> None:
    full_report["verify"] = None
    assert "Moved by up to 10% of its norm" in render(full_report)
    full_report["trust"]["targets"][0]["radius"] = 0
    assert "Moved by only 1% of its norm" in render(full_report)


def test_an_ensemble_shows_effects_instead_of_a_path(report: dict) -> None:
    report["selection"] |= {"method": "random_ensemble", "trace": []}
    ids = Page(render(report)).values("id")
    assert "effects" in ids and "path" not in ids


def test_1700_sources_show_the_chosen_ones_and_a_hundred(report: dict, tmp_path: Path) -> None:
    row = report["sources"][0]
    report["sources"] = [{**row, "name": f"source {i}", "selected": i >= 1660} for i in range(1700)]
    page = write_report(report, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r'scope="row">source \d+<', text)) == 140
    assert text.index(">source 1660<") < text.index(">source 0<")
    assert "all 1,700 are in report.json" in text
    assert len(json.loads((tmp_path / "report.json").read_text())["sources"]) == 1700
    assert page.stat().st_size < 400_000


def test_dozens_of_targets_show_twelve_panels_and_every_row(report: dict) -> None:
    target = report["verify"]["targets"][0]
    report["verify"]["targets"] = [{**target, "target": f"t{i}"} for i in range(30)] + [target]
    text = render(report)
    assert len(re.findall(r'id="estimate-\d+-title"', text)) == 12
    assert 'id="estimate-1-title">sort:' in text
    assert "the table has all 31" in text
    assert all(f'scope="row">t{i}<' in text for i in range(30))


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ({"meta": "lora", "tuned": None}, "lora"),
        ({"meta": "milora", "tuned": "milora"}, "milora"),
        ({"meta": "lora", "tuned": "full"}, "full; meta-training: lora"),
        ({}, None),
    ],
)
def test_the_adapters_kind_is_told(kinds, told):
    assert sentences.adapter(kinds) == told
