"""True fine-tunes: which subset was trained on, and what the targets' rows said afterwards.

What estimates are calibrated on, held against, and what a surrogate is fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.records import read_json, write_json

Scores = dict[str, dict[str, dict[str, float]]]  # target -> split -> metric -> value


@dataclass(frozen=True)
class TrueRun:
    """One fine-tune on a subset. Its scores hold the loss, and the task's metric if it has one."""

    subset: Subset
    seed: int
    scores: Scores

    def record(self) -> dict[str, Any]:
        return {"subset": sorted(self.subset), "seed": self.seed, "scores": self.scores}

    @staticmethod
    def of(record: dict[str, Any]) -> "TrueRun":
        return TrueRun(frozenset(record["subset"]), record["seed"], record["scores"])


def write_runs(file: Path, runs: Sequence[TrueRun], *, recipe: str) -> None:
    """`recipe` is the hash of all that decides a result beside subset and seed."""
    write_json(file, {"recipe": recipe, "runs": [run.record() for run in runs]})


def read_runs(file: Path) -> tuple[list[TrueRun], str]:
    """The runs of a file, and the hash of the recipe that made them."""
    content = read_json(file, "results of true fine-tunes", {"recipe": str, "runs": list})
    return [TrueRun.of(record) for record in content["runs"]], content["recipe"]


def scores_of(
    runs: Sequence[TrueRun], targets: Sequence[str], *, split: str, metric: str = "loss"
) -> Float[np.ndarray, "run target"]:
    """One metric of every run and target."""
    for run in runs:
        for target in targets:
            if metric not in run.scores.get(target, {}).get(split, {}):
                raise GradexError(
                    f"a true fine-tune has no {metric} of '{target}' on {split} rows; measure it "
                    "with calibrate or verify"
                )
    return np.array([[run.scores[t][split][metric] for t in targets] for run in runs])
