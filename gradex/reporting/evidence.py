"""The evidence for estimates: every method's measures beside the others', a table a target.

A measure that does not apply is None: errors of values that are no losses, R^2 of estimates that
are not calibrated (a map fitted to the very runs would flatter them), the coverage of estimates
without intervals, ranks of a method that says the same of every run.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex.data.evidence import (
    coverage,
    log_r2,
    mean_of_others,
    regret,
    spearman_interval,
    squared_relative_error,
)
from gradex.data.metrics import relative_error, spearman
from gradex.data.subsets import Subset
from gradex.estimators.protocol import Estimates
from gradex.estimators.surrogate import leave_one_out
from gradex.reporting.quantities import number

Losses = Float[np.ndarray, "run target"]
OTHERS_MEAN = "mean of the other runs"
# What the other true runs say of each run, without any gradient. Leaving a run out lowers the mean
# of the others where its own loss is high: the ranks of the mean alone are turned around, and those
# of a regression are pulled that way where it knows little.
FROM_OTHER_RUNS: dict[str, Callable[[Sequence[Subset], Losses], Losses]] = {
    OTHERS_MEAN: lambda subsets, truth: mean_of_others(truth),
    "ridge on the other runs": partial(leave_one_out, kernel="ridge"),
    "kernel ridge on the other runs": partial(leave_one_out, kernel="rbf"),
}
MEASURES = (
    "spearman", "spearman_low", "spearman_high", "select_spearman", "log_r2", "relative_error",
    "squared_relative_error", "coverage", "regret",
)  # fmt: skip
SHOWN = {
    "select_spearman": "by select rows",
    "log_r2": "R2 of log loss",
    "relative_error": "rel. error",
    "squared_relative_error": "sq. rel. error",
    "coverage": "coverage",
    "regret": "regret",
}


@dataclass(frozen=True)
class Truth:
    """The losses that the runs ended with, on the targets' test rows and on their select rows."""

    test: Losses
    select: Losses


@dataclass(frozen=True)
class Prediction:
    """What a method says of the runs: `test` is held against their test losses, `select` is what
    a selection would go by."""

    method: str
    test: Estimates
    select: Estimates
    in_losses: bool
    ranks: bool = True


def from_other_runs(
    subsets: Sequence[Subset], truth: Truth, targets: Sequence[str]
) -> list[Prediction]:
    def losses(value: Losses) -> Estimates:
        nothing = np.full_like(value, np.nan)
        return Estimates(list(targets), value, nothing, nothing, calibrated=True)

    return [
        Prediction(
            method,
            losses(predict(subsets, truth.test)),
            losses(predict(subsets, truth.select)),
            in_losses=True,
            ranks=method != OTHERS_MEAN,
        )
        for method, predict in FROM_OTHER_RUNS.items()
    ]


def target_evidence(
    column: int, predictions: Sequence[Prediction], missing: Mapping[str, str], truth: Losses
) -> dict[str, Any]:
    """One target: the measures of the first prediction, and those of all `methods`. `missing` are
    methods that cannot be had, with the reason."""
    true = truth[:, column]
    methods = [_measures(prediction, column, true) for prediction in predictions]
    nothing = dict.fromkeys(("calibrated", *MEASURES))
    methods += [{"method": m, "reason": reason} | nothing for m, reason in missing.items()]
    constant = relative_error(mean_of_others(truth)[:, column].tolist(), true.tolist())
    return {
        "target": predictions[0].test.targets[column],
        "n": len(true),
        **{measure: methods[0][measure] for measure in MEASURES},
        "constant_relative_error": _or_none(constant),
        "random_regret": _or_none(regret(np.zeros_like(true), true)),
        "methods": methods,
    }


def _measures(
    prediction: Prediction, column: int, truth: Float[np.ndarray, " run"]
) -> dict[str, Any]:
    test, by_select = prediction.test, prediction.select.value[:, column]
    value, low, high = (side[:, column] for side in (test.value, test.low, test.high))
    said = value if prediction.ranks else np.zeros_like(value)
    chosen_by = by_select if prediction.ranks else np.zeros_like(value)
    interval = spearman_interval(said, truth)
    found = {
        "spearman": spearman(said.tolist(), truth.tolist()),
        "spearman_low": interval[0],
        "spearman_high": interval[1],
        "select_spearman": spearman(chosen_by.tolist(), truth.tolist()),
        "coverage": coverage(low, high, truth),
        "regret": regret(chosen_by, truth),
    }
    if prediction.in_losses:
        found["relative_error"] = relative_error(value.tolist(), truth.tolist())
        found["squared_relative_error"] = squared_relative_error(value, truth)
    if test.calibrated:
        found["log_r2"] = log_r2(value, truth)
    told = {measure: _or_none(found.get(measure, math.nan)) for measure in MEASURES}
    return {"method": prediction.method, "reason": None, "calibrated": test.calibrated} | told


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def lines(entry: Mapping[str, Any]) -> list[str]:
    """A target's evidence as a table for the screen."""
    table = [["", "Spearman", *SHOWN.values()]]
    had = [row for row in entry["methods"] if row["reason"] is None]
    table += [[row["method"], _ranks(row), *(number(row[m]) for m in SHOWN)] for row in had]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = [f"{entry['target']}, {entry['n']} true fine-tunes:"]
    for name, *cells in table:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        text.append("  ".join([name.ljust(widths[0]), *padded]))
    text += [f"{m['method']}: none, {m['reason']}" for m in entry["methods"] if m["reason"]]
    if not entry["methods"][0]["calibrated"]:
        text.append("No R2 of log loss: the estimates are not calibrated.")
    return text


def _ranks(row: Mapping[str, Any]) -> str:
    text = number(row["spearman"], 2)
    if row["spearman_low"] is None:
        return text
    return f"{text} ({number(row['spearman_low'], 2)} to {number(row['spearman_high'], 2)})"


def write_evidence(file: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """The tables of all targets as one CSV, a line a target and method."""
    names = ["target", "method", "calibrated", *MEASURES, "reason"]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, names)
        table.writeheader()
        for entry in entries:
            for row in entry["methods"]:
                table.writerow({"target": entry["target"]} | row)
