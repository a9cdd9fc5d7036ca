"""The tables and the figure of a decomposition: every setting a line, calm about odd numbers."""

import csv

import pytest

from gradex.reporting.decomposition import losses_by_discard, write_tables

HOSTILE = r"$\frac{,"


def content(perplexities: list[float]) -> dict:
    def found(perplexity: float) -> dict:
        return {
            "perplexity": perplexity, "targets": {HOSTILE: perplexity}, "output_error": 0.1,
            "layers": {"q": 0.1},
        }  # fmt: skip

    return {
        "targets": [HOSTILE],
        "metrics": ["context", "plain"],
        "discards": [1, 64],
        "components": 128,
        "intact": found(perplexities[0]) | {"layers": {}},
        "settings": [
            {"metric": metric, "discard": discard, **found(perplexity)}
            for metric in ("context", "plain")
            for discard, perplexity in zip((1, 64), perplexities, strict=True)
        ],
    }


@pytest.mark.parametrize("perplexities", [[3.0, 3.2], [2.0, 1e87], [5.0, 5.0], [1.0, float("nan")]])
def test_any_perplexities_are_drawn_the_same_every_time(tmp_path, perplexities):
    for file in ("one.png", "two.png"):
        losses_by_discard(tmp_path / file, content(perplexities))
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and drawn == (tmp_path / "two.png").read_bytes()


def test_every_setting_is_a_line(tmp_path):
    write_tables(tmp_path, content([3.0, 3.5]))
    rows = list(csv.DictReader((tmp_path / "decompose.csv").read_text().splitlines()))
    assert [(r["metric"], r["discard"], r["perplexity"], r[HOSTILE]) for r in rows] == [
        ("none", "0", "3", "3"), ("context", "1", "3", "3"), ("context", "64", "3.5", "3.5"),
        ("plain", "1", "3", "3"), ("plain", "64", "3.5", "3.5"),
    ]  # fmt: skip
    layers = list(csv.DictReader((tmp_path / "layers.csv").read_text().splitlines()))
    assert len(layers) == 4 and layers[0]["output_error"] == "0.1"
