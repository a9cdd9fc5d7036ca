"""Which sketch to keep: how well estimates rank true fine-tunes, by projector, dimension and dtype.

python -m gradex.verify --num_subsets 40 && python benchmarks/sketch_quality.py

Reads the true fine-tunes of the newest run of verify, projects the rows of the same meta-training
once for every kind of sketch and seed, and ranks the same subsets by each. The choice of a default
goes by estimates from select rows; those from test rows stand beside them.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradex import runs
from gradex.arguments import EstimatorArguments
from gradex.data.metrics import spearman
from gradex.estimators import make_estimator
from gradex.gradients.store import GradientStore
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.records import read_json

SEEDS = range(3)


@dataclass(frozen=True)
class Sketch:
    projector: str
    dim: int
    dtype: str = "float16"
    precondition: str = "none"

    @property
    def bytes_a_row(self) -> int:
        numbers = {"float16": 2 * self.dim, "float32": 4 * self.dim, "int8": self.dim}
        return numbers[self.dtype]


def sketches() -> Iterator[Sketch]:
    for projector in ("sjlt", "rademacher"):
        for dim in (50, 100, 200, 400, 1024):
            yield Sketch(projector, dim)
    for dtype in ("int8", "float32"):
        yield from (Sketch("sjlt", dim, dtype) for dim in (100, 200, 400))
    yield from (Sketch("sjlt", dim, precondition="adam") for dim in (100, 200, 400))


def measure(sketch: Sketch, seed: int, truth: dict) -> tuple[float, float, float]:
    """Mean Spearman over targets, from select rows and from test rows, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        config = ProjectConfig(
            project_dim=sketch.dim,
            projector=sketch.projector,
            dtype=sketch.dtype,
            precondition=sketch.precondition,
            seed=seed,
            points=1,
            output_dir=str(Path(folder) / "store"),
        )
        began = time.process_time()
        store = GradientStore.open(project(config))
        seconds = time.process_time() - began
        select, test = (rank(store, truth, split) for split in ("select", "test"))
    return select, test, seconds


def rank(store: GradientStore, truth: dict, split: str) -> float:
    names = [entry["target"] for entry in truth["targets"]]
    fitted = make_estimator(EstimatorArguments()).fit(store, targets=names, split=split)
    found = []
    for column, entry in enumerate(truth["targets"]):
        subsets = [frozenset(point["subset"]) for point in entry["points"]]
        value = fitted.predict(subsets).value[:, column]
        found.append(spearman(value.tolist(), [point["truth"] for point in entry["points"]]))
    return float(np.mean(found))


def main() -> None:
    logging.disable(logging.WARNING)
    truth = read_json(runs.newest("verify") / "verify.json", "a run of verify", {"targets": list})
    print("| projector | dim | dtype | precondition | bytes a row | select | test | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for sketch in sketches():
        select, test, seconds = zip(*(measure(sketch, seed, truth) for seed in SEEDS), strict=True)
        print(
            f"| {sketch.projector} | {sketch.dim} | {sketch.dtype} | {sketch.precondition} "
            f"| {sketch.bytes_a_row} | {np.mean(select):.3f} ± {np.std(select):.3f} "
            f"| {np.mean(test):.3f} ± {np.std(test):.3f} | {np.median(seconds):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
