"""The figure of the trust radius: the same every time, and calm about odd data."""

import pytest

from gradex.reporting.trust_figure import first_order_error

HOSTILE = '<script>"&</script>'


def trust(names: list[str], errors: list) -> dict:
    distances = [0.01, 0.1, 1.0]
    targets = [{"target": name, "radius": 0.1, "errors": errors} for name in names]
    pooled = {"distances": distances, "limit": 0.5, "radius": 0.1, "errors": errors}
    return pooled | {"targets": targets}


@pytest.mark.parametrize(
    "names", [["sort"], ["a"] * 6, ["a"] * 30, [HOSTILE, r"$\frac{", "_hidden", "n" * 500, ""]]
)
def test_the_first_order_error_of_any_targets_is_drawn_the_same_every_time(tmp_path, names) -> None:
    for file in ("one.png", "two.png"):
        first_order_error(tmp_path / file, trust(names, [0.01, 0.2, 3.0]))
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and drawn == (tmp_path / "two.png").read_bytes()


def test_errors_that_have_no_place_on_the_axis_are_left_out(tmp_path) -> None:
    odd = trust(["sort"], [0.0, None, 3.0])
    first_order_error(tmp_path / "odd.png", odd)
    first_order_error(tmp_path / "none.png", trust(["sort"], [None] * 3) | {"radius": 0.0})
    assert (tmp_path / "odd.png").read_bytes() != (tmp_path / "none.png").read_bytes()
