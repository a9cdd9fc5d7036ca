"""The README's figure: estimates beside true fine-tunes, a panel a target.

python -m gradex.verify --num_subsets 40 && python benchmarks/readme_figure.py
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from gradex import runs
from gradex.records import read_json

INK, DOT = "#57606a", "#2f6fdb"


def draw(targets: list[dict], path: Path) -> None:
    figure = Figure(figsize=(2.3 * len(targets), 2.6), layout="constrained", dpi=160)
    for axes, entry in zip(figure.subplots(1, len(targets)), targets, strict=True):
        points = entry["points"]
        axes.scatter(
            [p["estimate"] for p in points],
            [p["truth"] for p in points],
            s=14,
            color=DOT,
            alpha=0.7,
        )
        axes.set_title(
            f"{entry['target']}: Spearman {entry['spearman']:.2f}", fontsize=9, color=INK
        )
        axes.tick_params(labelsize=7, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("estimate, without training", fontsize=9, color=INK)
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
