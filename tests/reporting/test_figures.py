"""The figures: well-formed, the same every time, and calm about odd data."""

import math
import re
from xml.etree import ElementTree

import pytest

from gradex.reporting import figures

HOSTILE = '<script>"&</script>'


def svgs(text: str) -> list[ElementTree.Element]:
    """The figures in a text, which must be well-formed without declaring any namespace."""
    return list(ElementTree.fromstring(f"<div>{text}</div>"))


def points(amount: int) -> list[dict]:
    return [{"subset": ["a"], "estimate": i / 7, "truth": i / 9} for i in range(amount)]


def drawn(name: str = "sort") -> list[str]:
    """Each figure, with a given name wherever a name goes."""
    target = {"target": name, "spearman": 0.5, "points": points(5)}
    return [
        figures.estimate_against_truth([target, target]),
        figures.estimate_against_truth([target], calibrated=True),
        figures.selection_path([{"step": 1, "did": name, "value": 0.4}]),
        figures.source_effects({name: -0.2, "other": 0.1}, [name]),
        figures.training_curves([{"name": name, "steps": [1, 2], "loss": [1.0, 0.5]}]),
    ]


def test_each_figure_has_a_title_and_a_description() -> None:
    for text in drawn():
        for svg in svgs(text):
            assert svg.tag == "svg" and svg.get("role") == "img"
            assert [child.tag for child in svg[:2]] == ["title", "desc"]
            assert svg.get("aria-labelledby") == f"{svg[0].get('id')} {svg[1].get('id')}"


def test_figures_are_the_same_every_time() -> None:
    assert drawn() == drawn()


@pytest.mark.parametrize("name", [HOSTILE, "$x$", r"$\frac{", "日本語", "a\nb\x00", "n" * 500, ""])
def test_any_name_can_be_drawn(name: str) -> None:
    for text in drawn(name):
        assert svgs(text)
        assert "<script" not in text


def test_colours_follow_the_page() -> None:
    for text in drawn():
        assert "var(--figure-ink" in text
        assert "#000000" not in text and "#ffffff" not in text


def intervals(text: str) -> list[list[float]]:
    """From where to where each horizontal line of a panel goes, in pixels."""
    (group,) = [g for g in svgs(text)[0].iter("g") if len(g.findall("path")) >= 3]
    numbers = [re.findall(r"[\d.]+", path.get("d")) for path in group.findall("path")]
    return [[float(x1), float(x2)] for x1, _, x2, _ in numbers]


def test_calibrated_points_have_their_intervals() -> None:
    bounded = [p | {"low": p["estimate"] - 0.1, "high": p["estimate"] + 0.2} for p in points(4)]
    bounded[0]["low"] = None
    target = {"target": "sort", "spearman": 0.5, "points": bounded}
    text = figures.estimate_against_truth([target], calibrated=True)
    lines = intervals(text)
    assert len(lines) == 3
    lengths = [right - left for left, right in lines]
    assert max(lengths) - min(lengths) < 1e-3 and lengths[0] > 10
    assert "a: estimate 0.143 (0.043 to 0.343), true loss 0.111" in text
    assert "a: estimate 0.000, true loss 0.000" in text


def test_a_boundless_interval_leaves_the_points_apart() -> None:
    target = {"target": "sort", "spearman": 0.5, "points": points(4)}
    target["points"][0] |= {"low": 1e-9, "high": 1e9}
    text = figures.estimate_against_truth([target], calibrated=True)
    (svg,) = svgs(text)
    marks = [float(use.get("x")) for use in svg.iter("use") if use.find("title") is not None]
    assert max(marks) - min(marks) > 60


def transfer(sources: int, targets: int) -> dict:
    names = [f"t{i}" for i in range(targets)]
    effect = [[(s + 1) * (-1) ** t for t in range(targets)] for s in range(sources)]
    return {
        "sources": [f"s{i}" for i in range(sources)],
        "targets": [{"target": name} for name in names],
        "unit": "log loss",
        "effects": dict.fromkeys(("effect", "low", "high", "hurts_share"), effect),
    }


def test_the_heat_map_begins_with_the_target_and_its_strongest_sources() -> None:
    many = transfer(figures.MOST_BARS + 5, figures.MOST_TARGETS + 3)
    text = figures.source_transfer(many, "t14")
    shown = set(re.findall(r">([st]\d+)<", text))
    assert {"t14", "t0", "s34", "s5"} <= shown and not {"t11", "s4"} & shown
    assert "30 sources on 12 targets" in text
    assert figures.source_transfer(many, "another") == ""


def test_a_figure_without_data_is_empty() -> None:
    hollow = {"target": "sort", "points": [{"estimate": None, "truth": 1.0}]}
    assert figures.estimate_against_truth([]) == ""
    assert figures.estimate_against_truth([hollow]) == ""
    assert figures.selection_path([]) == ""
    assert figures.selection_path([{"step": 1, "did": "a", "value": None}]) == ""
    assert figures.source_effects({"a": math.nan}, []) == ""
    assert figures.training_curves([{"name": "a", "steps": [1], "loss": [math.nan]}]) == ""


def test_a_point_names_its_sources_and_odd_points_are_left_out() -> None:
    odd = {"subset": ["odd"], "estimate": math.nan, "truth": 1.0}
    target = {"target": "sort", "spearman": None, "points": [odd, *points(2)]}
    (svg,) = svgs(figures.estimate_against_truth([target]))
    texts = [use.findtext("title") for use in svg.iter("use") if use.find("title") is not None]
    assert texts == [
        "a: estimate 0.000, true loss 0.000",
        "a: estimate 0.143, true loss 0.111",
    ]


def test_thousands_of_points_become_a_picture() -> None:
    target = {"target": "sort", "spearman": 0.5, "points": points(figures.MOST_SHAPES + 1)}
    text = figures.estimate_against_truth([target])
    (svg,) = svgs(text)
    (image,) = svg.iter("image")
    assert image.get("href").startswith("data:image/png")
    assert text == figures.estimate_against_truth([target])


def test_equal_points_and_single_steps_have_room() -> None:
    same = {"target": "a", "spearman": None, "points": points(1) * 3}
    assert svgs(figures.estimate_against_truth([same], calibrated=True))
    assert svgs(figures.training_curves([{"name": "a", "loss": [0.5]}]))


def test_long_lists_are_cut() -> None:
    path = [{"step": i, "did": f"s{i}", "value": 1.0 / i} for i in range(1, 100)]
    assert f"s{figures.MOST_STEPS + 1}<" not in figures.selection_path(path)
    scores = {f"s{i:03}": float(i) for i in range(100)}
    text = figures.source_effects(scores, ["s000"])
    assert "s000<" in text and f"s{figures.MOST_BARS:03}<" not in text


def test_a_curve_with_gaps_keeps_its_mean() -> None:
    loss = [None if i % 3 == 0 else 2.0 for i in range(200)]
    (svg,) = svgs(figures.training_curves([{"name": "a", "loss": loss}]))
    assert svg.findtext("desc") == "From 2.000 to 2.000 in 200 steps."
