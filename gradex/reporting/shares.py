"""Writes down how the sources' shares of a training went: a table, and a figure beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from gradex.reporting.csv_table import write_csv
from gradex.reporting.inline_svg import FAINT, UNIT, drawing
from gradex.reporting.names import short

# Those of Okabe and Ito (2008), told apart without colour vision too.
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
History = Sequence[tuple[int, Mapping[str, float]]]


def write_shares(folder: Path, history: History, *, steps: int) -> None:
    """shares.csv, a line for each step from which on there are other shares, and shares.png."""
    names = list(history[0][1])
    lines = [[str(start), *(shares[name] for name in names)] for start, shares in history]
    write_csv(folder / "shares.csv", ["from_step", *names], lines)
    draw_shares(folder / "shares.png", history, steps=steps)


def draw_shares(file: Path, history: History, *, steps: int) -> None:
    """A PNG: bands over the steps. The largest sources have a colour each, the others one."""
    names = list(history[0][1])
    edges = [start for start, _ in history] + [steps]
    table = np.array([[shares[name] for name in names] for _, shares in history])
    largest = np.argsort(-(np.diff(edges) @ table), kind="stable")[: len(COLORS)]
    with drawing(620, 300) as (figure, axes):
        _bands(axes, edges, table, largest)
        places = [str(place) for place in range(len(axes.collections))]
        legend = figure.legend(axes.collections, places, loc="outside right upper", frameon=False)
        for text, name in zip(
            legend.get_texts(), [*(short(names[i]) for i in largest), "others"], strict=False
        ):
            text.set_parse_math(False)  # names are whatever a user called a thing
            text.set_text(name)
        figure.savefig(file, dpi=2 * UNIT, facecolor="white", metadata={"Software": None})


def _bands(
    axes: Axes,
    edges: list[int],
    table: Float[np.ndarray, "solve source"],
    largest: np.ndarray,
) -> None:
    rest = np.delete(table, largest, axis=1).sum(1)
    bands = [*table[:, largest].T, *([rest] if table.shape[1] > len(largest) else [])]
    # The last shares hold until the last step.
    heights = [np.append(band, band[-1]) for band in bands]
    axes.stackplot(
        edges, heights, step="post", colors=[*COLORS[: len(largest)], FAINT], linewidth=0
    )
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the training")
