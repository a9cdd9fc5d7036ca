"""What a run of decompose found: two tables, and a figure of losses against what was discarded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gradex.reporting.csv_table import write_csv
from gradex.reporting.inline_svg import INK, STYLE, UNIT
from gradex.reporting.quantities import is_finite
from gradex.reporting.trust_figure import LOOKS

WIDTH, HEIGHT = 860, 320


def write_tables(folder: Path, content: Mapping[str, Any]) -> None:
    """decompose.csv: a line a setting, the first of the intact model; layers.csv: one for every
    layer in it."""
    targets, columns = content["targets"], ("metric", "discard", "output_error", "perplexity")
    settings = [one | {"discard": float(one["discard"])} for one in content["settings"]]
    intact = {"metric": "none", "discard": 0.0, **content["intact"]}
    write_csv(
        folder / "decompose.csv",
        [*columns, *targets],
        (
            [*(one[key] for key in columns), *(one["targets"][name] for name in targets)]
            for one in [intact, *settings]
        ),
    )
    write_csv(
        folder / "layers.csv",
        ["metric", "discard", "layer", "output_error"],
        (
            [one["metric"], one["discard"], layer, error]
            for one in settings
            for layer, error in one["layers"].items()
        ),
    )


def losses_by_discard(file: Path, content: dict[str, Any]) -> None:
    """A PNG of two panels, in each a line a metric that begins at the intact model."""
    with matplotlib.rc_context(STYLE):
        size = (WIDTH / UNIT, HEIGHT / UNIT)
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        left, right = figure.subplots(1, 2)
        for metric, look in zip(content["metrics"], LOOKS, strict=False):
            _line(left, content, metric, "perplexity", label=metric, **look)
            _line(right, content, metric, "output_error", **look)
        _mark_intact(left, content["intact"]["perplexity"])
        _name_axes(left, "perplexity on held-out rows")
        _log_perplexity(left)
        _name_axes(right, "error of the layers' outputs, mean")
        figure.legend(loc="outside right upper", frameon=False, title="smallest by")
        figure.savefig(file, dpi=2 * UNIT, facecolor="white", metadata={"Software": None})


def _line(axes: Axes, content: dict[str, Any], metric: str, key: str, **look: Any) -> None:
    intact = content["intact"] | {"discard": 0}
    found = [intact, *(one for one in content["settings"] if one["metric"] == metric)]
    values = [one[key] if is_finite(one[key]) else np.nan for one in found]
    axes.plot([one["discard"] for one in found], values, **look)


def _mark_intact(axes: Axes, perplexity: float) -> None:
    axes.axhline(perplexity, color=INK, linewidth=1, dashes=(4, 3), zorder=1)
    axes.set_title(f"intact (dashed): {perplexity:.3g}")


def _log_perplexity(axes: Axes) -> None:
    """More ticks within a power of ten where there are few of these."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    within = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=within))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_axes(axes: Axes, name: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    axes.set_xlabel("components that every layer has lost")
    axes.set_ylabel(name)
    axes.grid(axis="both")
