"""The heat maps: what stands where, what is hatched, and room for odd and for many names."""

import numpy as np
import pytest
from matplotlib.image import imread

from gradex.reporting import heatmaps
from gradex.reporting.heatmaps import affinity_map, effects_map, groups_map, save
from gradex.reporting.inline_svg import inline_svg
from gradex.selection.transfer import Effects


def made(mean, *, width=0.01, names="abcdefgh") -> Effects:
    mean = np.array(mean, dtype=float)
    names = list(names)[: len(mean)]
    return Effects(names, mean, mean - width, mean + width, (mean > 0).astype(float))


def rows_of(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def columns_of(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def cells_of(figure):
    (image,) = figure.axes[0].images
    return image


def numbers_of(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def hatched(figure) -> int:
    (squares,) = figure.axes[0].collections
    return len(squares.get_paths())


def test_what_helps_most_stands_first_whatever_the_scale_of_a_target():
    """The second target's numbers are a thousandth of the first's."""
    found = made([[1.0, 0.001], [-0.5, -0.001], [0.5, -0.001]], width=0)
    figure = effects_map(found, ["t", "u"], unit="log loss")
    assert rows_of(figure) == ["b", "c", "a"] and columns_of(figure) == ["t", "u"]
    np.testing.assert_array_equal(cells_of(figure).get_array(), found.mean[[1, 2, 0]])


def test_the_colours_part_at_zero_and_show_small_numbers():
    image = cells_of(effects_map(made([[-4.0], [0.0], [1.0]]), ["t"], unit="log loss"))
    middle, below, above = (image.norm(value) for value in (0.0, -1.0, 1.0))
    assert middle == 0.5 and (below, above) == (0.25, 0.75)  # a quarter of the number, half as far
    red, _, blue, _ = image.cmap(below)
    assert blue > red


def test_cells_that_could_be_zero_are_hatched_and_hold_no_number():
    found = made([[-1.0], [0.005], [0.5]])
    figure = effects_map(found, ["t"], unit="log loss")
    assert hatched(figure) == 1 and numbers_of(figure) == ["−1.00", "0.50"]
    no_interval = made([[-1.0], [0.5]], width=np.nan)
    assert hatched(effects_map(no_interval, ["t"], unit="log loss")) == 2


def test_a_targets_own_source_is_framed():
    figure = effects_map(made([[0.1, 0.2], [-0.1, 0.3]]), ["b", "t"], unit="log loss")
    (frame,) = figure.axes[0].patches
    assert rows_of(figure) == ["b", "a"] and frame.get_xy() == (-0.5, -0.5)


def test_the_unit_is_said():
    figure = effects_map(made([[0.1]]), ["t"], unit="uncalibrated")
    assert figure.axes[1].get_ylabel() == "change of the estimate\n(uncalibrated)"


def test_sources_that_interact_alike_stand_side_by_side():
    matrix = np.full((4, 4), np.nan)
    for s, u, value in ((0, 1, 9), (0, 3, 9), (2, 1, 9), (2, 3, 9), (0, 2, -9), (1, 3, -9)):
        matrix[s, u] = matrix[u, s] = value
    figure = affinity_map(matrix, list("abcd"), target="t", unit="log loss")
    assert {frozenset(rows_of(figure)[:2]), frozenset(rows_of(figure)[2:])} == {
        frozenset("ac"),
        frozenset("bd"),
    }
    assert rows_of(figure) == columns_of(figure)
    cells = cells_of(figure).get_array()
    np.testing.assert_array_equal(cells, cells.T)
    assert cells.mask.diagonal().all()


def test_many_sources_are_cut_to_the_strongest_and_that_is_said(monkeypatch):
    monkeypatch.setattr(heatmaps, "MOST", 3)
    figure = effects_map(made([[1], [-2], [0.5], [0.1], [3]]), ["t"], unit="log loss")
    assert rows_of(figure) == ["b", "a", "e"]
    assert "(3 of 5 sources, 1 of 1 targets)" in figure.axes[0].get_title(loc="left")


def test_labels_of_many_sources_do_not_overlap():
    names = [f"super_glue/with_a_long_name_{i}" for i in range(44)]
    mean = np.random.default_rng(0).normal(size=(44, 44))
    figure = effects_map(made(mean, names=names), names, unit="uncalibrated")
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]) == 0
        assert all(box.x0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)


@pytest.mark.parametrize("name", ["$x$", r"$\frac{", "日本語", "a\nb\x00", "n" * 500, ""])
def test_any_name_can_be_drawn(name, tmp_path):
    found = made([[-1.0, 0.0], [0.5, 0.0]], names=[name, "b"])
    for figure in (
        effects_map(found, [name, "t"], unit="log loss"),
        affinity_map(np.array([[np.nan, 1], [1, np.nan]]), [name, "b"], target=name, unit="x"),
    ):
        save(figure, tmp_path / "map.png")
        assert imread(tmp_path / "map.png").size > 0


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e7])
def test_any_scale_can_be_drawn(value, tmp_path):
    save(effects_map(made([[value], [-value]]), ["t"], unit="x"), tmp_path / "map.png")


def test_a_map_can_stand_in_a_page():
    figure = effects_map(made([[0.1], [-0.2]]), ["t"], unit="x")
    assert inline_svg(figure, "effects", title="Effects", description="").startswith("<svg")


def test_groups_stand_together_each_in_a_frame():
    matrix = np.arange(16.0).reshape(4, 4)
    figure = groups_map(matrix, list("abcd"), [["a", "c", "d"], ["b"]])
    assert rows_of(figure) == columns_of(figure) == ["a", "c", "d", "b"]
    order = [0, 2, 3, 1]
    np.testing.assert_array_equal(cells_of(figure).get_array(), matrix[np.ix_(order, order)])
    frames = [(p.get_x(), p.get_y(), p.get_width()) for p in figure.axes[0].patches]
    assert frames == [(-0.5, -0.5, 3), (2.5, 2.5, 1)]


def test_groups_of_many_sources_are_shown_as_far_as_there_is_room(monkeypatch):
    monkeypatch.setattr(heatmaps, "MOST", 3)
    figure = groups_map(np.zeros((5, 5)), list("abcde"), [["a", "b"], ["c", "d"], ["e"]])
    assert rows_of(figure) == ["a", "b", "c"]
    assert [patch.get_width() for patch in figure.axes[0].patches] == [2, 1]
    assert figure.axes[0].get_title("left") == "Groups (3 of 5 sources)"
