"""The ranks that AdaLoRA kept: by kind of layer and depth, in the log and on the page."""

import pytest

from gradex.reporting.html import render
from gradex.reporting.ranks import rank_lines, rank_table


def ranks(**kept: int) -> dict:
    return {name.replace("_", "."): {"kept": n, "of": 3} for name, n in kept.items()}


LLAMA = ranks(m_layers_0_q=3, m_layers_0_v=1, m_layers_1_q=0, m_layers_1_v=2, m_layers_10_q=2)


def test_a_row_a_layer_and_a_column_a_depth():
    table = rank_table(LLAMA)
    assert table["depths"] == [0, 1, 10]
    assert table["rows"] == [
        {"name": "q", "kept": [3, 0, 2]}, {"name": "v", "kept": [1, 2, None]}
    ]  # fmt: skip
    assert (table["kept"], table["of"], table["most"]) == (8, 15, 3)


def test_stacks_of_one_model_are_told_apart():
    table = rank_table(ranks(encoder_block_0_q=1, decoder_block_0_q=2, head=3))
    assert [row["name"] for row in table["rows"]] == ["encoder.block q", "decoder.block q", "head"]


def test_the_log_has_the_same():
    assert list(rank_lines(LLAMA)) == [
        "ranks: 8 of 15 are kept, of 3 a layer, by depth:", "  q: 3 0 2", "  v: 1 2 -"
    ]  # fmt: skip


def test_other_kinds_have_none(report):
    assert rank_table({}) == {} and list(rank_lines({})) == []
    assert "Ranks kept" not in render(report) and "Ranks kept" not in render(report | {"ranks": {}})


@pytest.mark.parametrize("name", ["<b>0</b>.q", "m.0.<script>", "m.0.\x1b[31mq"])
def test_names_are_only_text(report, name):
    page = render(report | {"ranks": {name: {"kept": 1, "of": 3}}})
    assert "Ranks kept" in page and "1 of 3" in page
    assert "<script>" not in page and "<b>" not in page and "\x1b" not in page


def test_no_rank_is_a_zero_and_no_layer_is_empty(report):
    page = render(report | {"ranks": LLAMA})
    section = page.split('id="ranks"')[1].split("</section>")[0]
    assert section.count("<td>0</td>") == section.count("<td></td>") == 1
