"""True fine-tunes: which subset was trained on, and what the targets' rows said afterwards.

What estimates are calibrated on, held against, and what a surrogate is fitted to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.records import read_json, require_shape, write_json

RECORD = {"subset": list, "seed": int, "scores": dict}
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
    def of(record: Any, *, where: str, what: str) -> "TrueRun":
        """Checked: a damaged record would be an error far from here, or numbers without meaning."""
        require_shape(record, RECORD, where=where, what=what)
        names, scores = record["subset"], record["scores"]
        if not names or not all(isinstance(name, str) for name in names):
            raise GradexError(f"{where}: found the subset {names!r:.40}; expected {what}")
        require_sound(scores, where=where, what=what)
        return TrueRun(frozenset(names), record["seed"], scores)


def require_sound(scores: dict[str, Any], *, where: str, what: str) -> None:
    """Refuse scores that no fine-tune should have."""
    require_shape(scores, dict.fromkeys(scores, dict), where=where, what=what)
    for target, splits in scores.items():
        place = f"{where}: {target}"
        require_shape(splits, dict.fromkeys(splits, dict), where=place, what=what)
        for split, found in splits.items():
            require_shape(found, dict.fromkeys(found, (int, float)), where=place, what=what)
            for metric, score in found.items():
                if not 0 <= score < math.inf:
                    raise GradexError(
                        f"{place}: found a {metric} of {score} on {split} rows, expected a number "
                        "of at least 0; leave this fine-tune out, or try a lower --learning_rate"
                    )


def write_runs(file: Path, runs: Sequence[TrueRun], *, recipe: str) -> None:
    """`recipe` is the hash of all that decides a result beside subset and seed."""
    write_json(file, {"recipe": recipe, "runs": [run.record() for run in runs]})


def read_runs(file: Path) -> tuple[list[TrueRun], str]:
    """The runs of a file, and the hash of the recipe that made them."""
    what = "results of true fine-tunes, as calibrate and verify write them"
    content = read_json(file, what, {"recipe": str, "runs": list})
    found = [TrueRun.of(record, where=str(file), what=what) for record in content["runs"]]
    return found, content["recipe"]


def read_all_runs(files: Sequence[str], *, recipe: str | None = None) -> list[TrueRun]:
    """The runs of several files, each once; all of one recipe, that of the caller's own fine-tunes
    where it is given, so that they differ in subset and seed alone."""
    found: dict[tuple[Subset, int], TrueRun] = {}
    made_by = {} if recipe is None else {recipe: "this stage"}
    for file in files:
        runs, its_recipe = read_runs(Path(file))
        made_by.setdefault(its_recipe, file)
        found |= {(run.subset, run.seed): run for run in runs}
    if len(made_by) > 1:
        raise GradexError(
            f"--runs: the fine-tunes of {' and '.join(made_by.values())} differ in more than "
            "subset and seed (model, data, start, steps, targets or other settings); give files of "
            "one kind"
        )
    return list(found.values())


def scores_of(
    runs: Sequence[TrueRun], targets: Sequence[str], *, split: str, metric: str = "loss"
) -> Float[np.ndarray, "run target"]:
    """One metric of every run and target."""
    for run in runs:
        for target in targets:
            known = run.scores.get(target, {}).get(split, {})
            if metric not in known:
                raise GradexError(
                    f"a true fine-tune has no {metric} of '{target}' on {split} rows, but "
                    f"{', '.join(known) or 'nothing'}; measure it with calibrate or verify"
                )
    return np.array([[run.scores[t][split][metric] for t in targets] for run in runs])
