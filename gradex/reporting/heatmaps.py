"""Draws heat maps of effects and interactions: blue below zero, red above it.

The colours part at zero and grow with the square root of the number, so that small effects show
beside large ones. Blue and red of equal size differ for colour-blind eyes too.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from gradex.reporting.inline_svg import INK, STYLE, UNIT
from gradex.reporting.names import short
from gradex.reporting.quantities import number
from gradex.selection.transfer import Effects

COLOURS = "RdBu_r"
MOST = 100  # rows and columns of a map; the tables have all
MOST_WIDE = 8  # columns that have the room for numbers
CELL, WIDE = 18, 50  # pixels of a cell's side, and of a cell's width that holds a number
LETTER, FONT = 6.2, 9
BAR = 130  # pixels for the scale of the colours and what stands beside it
BAR_ROWS = 12  # its height, in cells
DARK, DEEP = "#22262b", 0.3  # of letters, on all but colours so far from the middle of the scale

MAP_STYLE = STYLE | {"font.size": FONT, "axes.titlesize": FONT + 2, "axes.titleweight": "bold"}


@matplotlib.rc_context(MAP_STYLE)
def effects_map(found: Effects, targets: Sequence[str], *, unit: str) -> Figure:
    """Source by target, the sources that help most first; a target's own source is framed."""
    rows = _by_helpfulness(found.mean)
    names, columns = [found.sources[i] for i in rows], targets[:MOST]
    values, unsure = found.mean[rows, :MOST], found.uncertain[rows, :MOST]
    wide = len(columns) <= MOST_WIDE
    figure, axes = _canvas(names, columns, width=WIDE if wide else CELL)
    image = _draw_cells(axes, values, names, columns)
    _hatch(axes, unsure)
    if wide:
        _write_numbers(axes, image, hidden=unsure)
    _frame_own(axes, names, columns)
    title = "Each source's effect"
    if max(found.mean.shape) > MOST:
        title += f" ({len(names)} of {len(found.sources)} sources, "
        title += f"{len(columns)} of {len(targets)} targets)"
    axes.set_title(title, pad=10)
    axes.set_xlabel("hatched: interval over contexts holds zero", loc="left", labelpad=8)
    _colour_bar(figure, image, f"change of the estimate\n({unit})", ("helps", "hurts"))
    return figure


@matplotlib.rc_context(MAP_STYLE)
def affinity_map(
    matrix: Float[np.ndarray, "source source"], sources: Sequence[str], *, target: str, unit: str
) -> Figure:
    """Source by source for one target, those that interact alike side by side."""
    order = _by_likeness(np.nan_to_num(matrix))[:MOST]
    names = [sources[i] for i in order]
    figure, axes = _canvas(names, names, width=CELL)
    image = _draw_cells(axes, matrix[np.ix_(order, order)], names, names)
    title = f"Pairs, for {short(target)}"
    if len(sources) > MOST:
        title += f" ({len(names)} of {len(sources)})"
    axes.set_title(title, pad=10, parse_math=False)
    ends = ("better together", "worse together")
    _colour_bar(figure, image, f"interaction: change of the\nestimate ({unit})", ends)
    return figure


@matplotlib.rc_context(MAP_STYLE)
def groups_map(
    together: Float[np.ndarray, "source source"],
    sources: Sequence[str],
    groups: Sequence[Sequence[str]],
) -> Figure:
    """Source by source, one group after the other, each in a frame."""
    names = [name for group in groups for name in group][:MOST]
    order = [sources.index(name) for name in names]
    figure, axes = _canvas(names, names, width=CELL)
    image = _draw_cells(axes, together[np.ix_(order, order)], names, names)
    _frame_groups(axes, [len(group) for group in groups], room=len(names))
    title = "Groups" + (f" ({len(names)} of {len(sources)} sources)" if len(sources) > MOST else "")
    axes.set_title(title, pad=10)
    ends = ("better together", "worse together")
    _colour_bar(figure, image, "rank of subsets with both,\nmean over targets", ends)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a picture on white, in twice the resolution of a page."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(path, dpi=2 * UNIT, facecolor="white")


def _by_helpfulness(effect: Float[np.ndarray, "source target"]) -> list[int]:
    """Sources in the order of their mean effect, each target's taken as a share of its largest."""
    size = np.abs(effect).max(0)
    share = effect / np.where(size > 0, size, 1)
    strongest = np.argsort(-np.abs(share).max(1), kind="stable")[:MOST]
    return sorted(map(int, strongest), key=lambda i: (share[i].mean(), i))


def _by_likeness(matrix: Float[np.ndarray, "source source"]) -> list[int]:
    """Leaves of a clustering of the rows, in the order that has most alike neighbours."""
    if len(matrix) < 3:
        return list(range(len(matrix)))
    tree = linkage(pdist(matrix), method="average", optimal_ordering=True)
    return [int(i) for i in leaves_list(tree)]


def _canvas(rows: Sequence[str], columns: Sequence[str], *, width: int) -> tuple[Figure, Axes]:
    beside, above = (LETTER * max(len(short(n)) for n in side) + 20 for side in (rows, columns))
    pixels = (
        beside + width * len(columns) + BAR,
        above + CELL * max(len(rows), BAR_ROWS) + 60,
    )
    size = tuple(pixel / UNIT for pixel in pixels)
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    return figure, figure.subplots()


def _draw_cells(
    axes: Axes,
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
) -> AxesImage:
    largest = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    scale = FuncNorm((_signed_root, _signed_square), vmin=-largest, vmax=largest)
    image = axes.imshow(values, cmap=COLOURS, norm=scale, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), list(map(short, columns)), rotation=90, parse_math=False)
    axes.set_yticks(range(len(rows)), list(map(short, rows)), parse_math=False)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return image


def _signed_root(value: np.ndarray) -> np.ndarray:
    return np.sign(value) * np.sqrt(np.abs(value))


def _signed_square(value: np.ndarray) -> np.ndarray:
    return np.sign(value) * np.square(value)


def _hatch(axes: Axes, cells: Bool[np.ndarray, "row column"]) -> None:
    squares = [_square(row, column) for row, column in np.argwhere(cells).tolist()]
    look = {"facecolor": "none", "edgecolor": INK, "linewidth": 0, "hatch": "////"}
    axes.add_collection(PatchCollection(squares, gid="uncertain", **look), autolim=False)


def _square(row: int, column: int, **look: Any) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, **look)


def _write_numbers(axes: Axes, image: AxesImage, *, hidden: Bool[np.ndarray, "row column"]) -> None:
    digits = _digits(image.norm.vmax)
    for row, column in np.argwhere(~hidden).tolist():
        value = float(image.get_array()[row, column])
        deep = abs(float(image.norm(value)) - 0.5) > DEEP
        look = {"ha": "center", "va": "center", "color": "white" if deep else DARK}
        axes.text(column, row, number(value, digits), fontsize=FONT - 1, **look)


def _digits(largest: float) -> int:
    """Decimals that show the largest number with three digits."""
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 6))


def _frame_own(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    for column, name in enumerate(columns):
        if name in rows:
            axes.add_patch(_square(rows.index(name), column, fill=False, edgecolor=DARK))


def _frame_groups(axes: Axes, sizes: Sequence[int], *, room: int) -> None:
    """Squares along the diagonal, as far as there is room."""
    start = 0
    for size in sizes:
        size = min(size, room - start)
        if size:
            corner = (start - 0.5, start - 0.5)
            axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=DARK, linewidth=2))
        start += size


def _colour_bar(figure: Figure, image: AxesImage, label: str, ends: tuple[str, str]) -> None:
    """As long as some cells, however many there are; `ends` say what below and above zero is."""
    largest, rows = image.norm.vmax, len(image.get_array())
    share = min(1.0, BAR_ROWS / rows)
    bar = figure.colorbar(image, shrink=share, aspect=BAR_ROWS, anchor=(0, 0.9), label=label)
    ticks = [part * largest for part in (-1, -0.5, -0.1, 0, 0.1, 0.5, 1)]
    bar.set_ticks(ticks, labels=[number(tick, _digits(largest)) for tick in ticks])
    bar.ax.set_xlabel(ends[0], loc="left")
    bar.ax.set_title(ends[1], fontweight="normal", fontsize=FONT)
    bar.outline.set_visible(False)
