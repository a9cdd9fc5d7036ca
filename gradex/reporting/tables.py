"""Prepares the rows of the report's tables: what is shown, in which order, and what is best."""

from functools import partial

from gradex.reporting.quantities import (
    GLUE,
    count,
    finite,
    is_finite,
    mean,
    mean_and_spread,
    number,
    percent,
    telling_digits,
)
from gradex.reporting.sentences import metric_rank

MOST_OTHER_SOURCES = 100
# How verify calls them, and what they go by.
METHODS = {
    "influence": "one step along the mean gradient",
    "cosine": "likeness of gradients",
    "representation": "likeness of hidden states",
    "ngram": "likeness of texts",
    "random": "drawn at random",
    "constant": "the same for every set",
    "ridge on the other runs": "by who is in the set",
    "kernel ridge on the other runs": "by who is in the set",
}
MEASURES = {
    "log_r2": ("R² of log loss", partial(number, digits=2)),
    "coverage": ("In 90% interval", percent),
    "regret": ("Regret", number),
}


def outcome_rows(outcomes: list[dict]) -> list[dict]:
    """A row for each fine-tune that was compared, with the best loss and metric marked."""
    losses = finite(mean(row.get("loss")) for row in outcomes)
    ranks = finite(metric_rank(row) for row in outcomes)
    digits = telling_digits(losses, 3)
    return [
        {
            "name": row["name"],
            "sources": count(row.get("sources")),
            "loss": mean_and_spread(row.get("loss"), digits),
            "loss_best": bool(losses) and mean(row.get("loss")) == min(losses),
            "share": _share(mean(row.get("loss")), losses),
            "lost": _seeds_lost(row.get("loss")),
            "metric": mean_and_spread((row.get("metric") or {}).get("values")),
            "metric_best": bool(ranks) and metric_rank(row) == max(ranks),
        }
        for row in outcomes
    ]


def _share(loss: float | None, losses: list[float]) -> float:
    """The length of the row's bar, in percent of the longest."""
    longest = max(losses, default=0.0)
    return round(100 * max(loss, 0.0) / longest, 1) if is_finite(loss) and longest > 0 else 0.0


def _seeds_lost(values: list | None) -> str:
    given, kept = len(values or []), len(finite(values))
    return f"{kept} of {given} seeds" if kept < given else ""


def metric_name(outcomes: list[dict]) -> str:
    """The name of the metric that stands beside the loss, empty when none was measured."""
    metrics = (row.get("metric") for row in outcomes)
    return next((metric["name"] for metric in metrics if metric), "")


def targets(found: list[dict], first: str | None) -> dict:
    """The verified targets, the one the report is about before the others."""
    ordered = sorted(found, key=lambda row: row["target"] != first)
    measures = _measured(ordered, ("log_r2",))
    return {"heads": _heads(measures), "rows": [_measured_row(row, measures) for row in ordered]}


def evidence(found: list[dict], target: str | None) -> dict:
    """The methods that estimated one target, and why others are missing."""
    methods = next((row.get("methods") or [] for row in found if row["target"] == target), [])
    had = [row for row in methods if not row.get("reason")]
    measures = _measured(had, tuple(MEASURES))
    return {
        "heads": _heads(measures),
        "rows": [
            _measured_row(row, measures) | {"gloss": METHODS.get(row["method"], "")} for row in had
        ],
        "missing": [row for row in methods if row.get("reason")],
    }


def _measured(rows: list[dict], measures: tuple[str, ...]) -> list[str]:
    """Those that some row has: a column of dashes says nothing."""
    return [key for key in measures if any(is_finite(row.get(key)) for row in rows)]


def _heads(measures: list[str]) -> list[str]:
    return ["Spearman", *(MEASURES[key][0] for key in measures)]


def _measured_row(row: dict, measures: list[str]) -> dict:
    return {**row, "cells": [_spearman(row), *(MEASURES[key][1](row.get(key)) for key in measures)]}


def _spearman(row: dict) -> str:
    text = number(row.get("spearman"), 2)
    low, high = row.get("spearman_low"), row.get("spearman_high")
    if is_finite(low) and is_finite(high):
        text += f" ({number(low, 2)}{GLUE}to{GLUE}{number(high, 2)})"
    return text


def source_rows(sources: list[dict], scores: dict[str, float]) -> list[dict]:
    """The chosen sources and the first hundred others, the best score first within each."""

    def standing(row: dict) -> tuple:
        score = scores.get(row["name"])
        return not row.get("selected"), score if is_finite(score) else float("inf")

    ordered = sorted(sources, key=standing)
    chosen = sum(bool(row.get("selected")) for row in sources)
    return [
        {
            **row,
            "left_out": sum((row.get("bad") or {}).values()),
            "score": scores.get(row["name"]),
        }
        for row in ordered[: chosen + MOST_OTHER_SOURCES]
    ]
