"""Draws what a run of trust found: the error of first-order changes against the distance gone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from gradex.reporting.inline_svg import FAINT, INK, UNIT, drawing
from gradex.reporting.names import short
from gradex.reporting.quantities import is_finite

MOST_TICKS = 8
# Lines that are told apart without colour too; the colours are those of Okabe and Ito (2008).
LOOKS = [
    {"color": "#0072b2", "marker": "o"},
    {"color": "#d55e00", "marker": "s"},
    {"color": "#009e73", "marker": "^"},
    {"color": "#cc79a7", "marker": "D"},
    {"color": "#e69f00", "marker": "v"},
    {"color": "#56b4e9", "marker": "X"},
]


def first_order_error(file: Path, trust: dict) -> None:
    """A PNG: the error of first-order changes against the distance gone, a line a target.

    More targets than can be told apart are drawn alike, behind the line of them all together.
    """
    targets, distances = trust["targets"], trust["distances"]
    alike = len(targets) > len(LOOKS)
    looks = [{"color": FAINT}] * len(targets) if alike else LOOKS
    pooled = {"linewidth": 3, "color": INK, "zorder": 3 if alike else 1.5}
    with drawing(620, 340) as (figure, axes):
        for target, look in zip(targets, looks, strict=False):
            _error_line(axes, distances, target["errors"], linewidth=1.5, **look)
        _error_line(axes, distances, trust["errors"], **pooled)
        _mark_limits(axes, trust)
        _log_axes(axes, distances)
        names = ["a target"] if alike else [short(target["target"]) for target in targets]
        _line_names(figure, [*axes.lines[: len(names)], axes.lines[len(targets)]], names)
        figure.savefig(file, dpi=2 * UNIT, facecolor="white", metadata={"Software": None})


def _error_line(axes: Axes, distances: list[float], errors: list, **look: Any) -> None:
    """Errors that are not finite or 0 have no place on a logarithmic axis."""
    values = [value if is_finite(value) and value > 0 else np.nan for value in errors]
    axes.plot(distances, values, **look)


def _mark_limits(axes: Axes, trust: dict) -> None:
    """The limit as a line across, and the radius as a line up, each named at its end."""
    line = {"color": INK, "linewidth": 1, "dashes": (4, 3), "zorder": 1}
    axes.axhline(trust["limit"], **line)
    left = {"transform": axes.get_yaxis_transform(), "va": "bottom"}  # where errors are small
    axes.text(0.01, trust["limit"], f"limit {trust['limit']:g}", **left)
    if trust["radius"] > 0:
        axes.axvline(trust["radius"], **line)
        top = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axes.text(trust["radius"], 1.02, f"trust radius {_percent(trust['radius'])}", **top)


def _log_axes(axes: Axes, distances: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    if len(distances) <= MOST_TICKS:
        axes.set_xticks(distances, [_percent(distance) for distance in distances], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(lambda value, _: _percent(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("distance from the meta adapter, as a share of its norm")
    axes.set_ylabel("error of first-order changes")
    axes.grid(axis="both")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _line_names(figure: Figure, lines: list[Line2D], names: list[str]) -> None:
    """A legend of names that are whatever a user called a thing: its texts are set as they are."""
    places = [str(place) for place in range(len(lines))]
    legend = figure.legend(lines, places, loc="outside right upper", frameon=False)
    for text, name in zip(legend.get_texts(), [*names, "all together"], strict=True):
        text.set_parse_math(False)
        text.set_text(name)
