"""The README's figure: calibrated estimates beside true fine-tunes, a panel a target.

python -m gradex.calibrate --anchors 8 && python -m gradex.verify --num_subsets 40
python benchmarks/readme_figure.py
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from gradex import runs
from gradex.records import read_json

INK, DOT = "#57606a", "#2f6fdb"


def draw(targets: list[dict], path: Path) -> None:
    """Losses on both axes, with 90% intervals; logarithmic, since they differ by factors."""
    figure = Figure(figsize=(2.3 * len(targets), 2.7), layout="constrained", dpi=160)
    for axes, entry in zip(figure.subplots(1, len(targets)), targets, strict=True):
        points = entry["points"]
        told, true, low, high = (
            np.array([p[key] for p in points]) for key in ("estimate", "truth", "low", "high")
        )
        ends = min(told.min(), true.min()) / 1.3, max(told.max(), true.max()) * 1.3
        axes.plot(ends, ends, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        reach = np.stack([told - low, high - told])
        axes.errorbar(told, true, xerr=reach, fmt="none", ecolor=DOT, elinewidth=0.6, alpha=0.4)
        axes.scatter(told, true, s=12, color=DOT, alpha=0.8)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        axes.set_title(
            f"{entry['target']}: Spearman {entry['spearman']:.2f}", fontsize=9, color=INK
        )
        axes.tick_params(labelsize=7, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("estimated test loss, with its 90% interval", fontsize=9, color=INK)
    figure.supylabel("true test loss", fontsize=9, color=INK)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else runs.newest("verify")
    content = read_json(run / "verify.json", "a run of verify")
    path = Path(__file__).with_name("estimates_beside_truth.png")
    draw(content["targets"], path)
    print(path)


if __name__ == "__main__":
    main()
