"""Small reports for the tests, with made-up numbers: a plain one, and one with all there can be."""

import copy

import pytest

REPORT = {
    "format": "gradex-report/1",
    "created": "2026-11-21T03:00:00+00:00",
    "title": "Which sources help sort?",
    "target": "sort",
    "base": "demo",
    "n_sources": 3,
    "selection": {
        "method": "forward",
        "selected": ["sort", "max"],
        "value": 0.31,
        "base_value": 1.0,
        "trace": [
            {"step": 1, "added": "sort", "value": 0.7},
            {"step": 2, "added": "max", "value": 0.31},
        ],
        "scores": {"sort": -0.3, "max": -0.1, "add": 0.2},
    },
    "outcomes": [
        {"name": "base model", "sources": 0, "loss": [1.10], "metric": None},
        {"name": "all sources", "sources": 3, "loss": [0.52, 0.50, 0.54], "metric": None},
        {"name": "selection", "sources": 2, "loss": [0.31, 0.30, 0.32], "metric": None},
    ],
    "verify": {
        "estimator": "linear",
        "calibrated": False,
        "targets": [
            {
                "target": "sort",
                "n": 3,
                "spearman": 0.83,
                "spearman_low": None,
                "spearman_high": None,
                "relative_error": 0.4,
                "constant_relative_error": 0.5,
                "points": [
                    {"subset": ["add", "sort"], "estimate": 0.5, "truth": 0.6},
                    {"subset": ["add"], "estimate": 0.9, "truth": 1.0},
                    {"subset": ["max"], "estimate": 0.7, "truth": 0.7},
                ],
            }
        ],
    },
    "sources": [
        {
            "name": name,
            "rows": 150,
            "bad": bad,
            "tokens": 1234,
            "loss": 0.8,
            "margin": 1.2,
            "grad_norm": 3.1,
            "selected": name != "add",
        }
        for name, bad in (("add", {}), ("sort", {"empty completion": 3}), ("max", {}))
    ],
    "curves": [{"name": "meta-training", "steps": [1, 2, 3], "loss": [1.0, 0.8, 0.7]}],
    "warnings": ["trec_open: every row has an empty completion; source skipped"],
    "stages": [
        {
            "stage": "meta_train",
            "seconds": 200.0,
            "path": "runs/meta_train/first",
            "command": "python -m gradex.meta_train --base demo",
        }
    ],
    "versions": {"gradex": "0.1.0"},
    "fingerprint": "abc123",
}


METHODS = [
    {
        "method": "linear",
        "reason": None,
        "spearman": 0.83,
        "spearman_low": 0.5,
        "spearman_high": 1.0,
        "log_r2": 0.74,
        "coverage": 2 / 3,
        "regret": 0.0,
    },
    {"method": "cosine", "reason": None, "spearman": 0.4, "log_r2": None, "regret": 0.125},
    {"method": "ngram", "reason": "the store has no text"},
]
TRANSFER = {
    "sources": ["add", "sort", "max"],
    "sources_a_context": 2,
    "unit": "log loss",
    "targets": [
        {"target": "add", "helps": [], "hurts": []},
        {"target": "sort", "helps": ["sort", "max"], "hurts": ["add"]},
    ],
    "effects": {
        "effect": [[0.0, 0.5], [0.1, -1.0], [0.2, -0.25]],
        "low": [[None, 0.4], [None, -1.1], [None, -0.3]],
        "high": [[None, 0.6], [None, -0.9], [None, -0.2]],
        "hurts_share": [[0.5, 1.0], [0.5, 0.0], [0.5, 0.0]],
    },
}
TRUST = {"limit": 0.5, "distances": [0.01, 0.1], "targets": [{"target": "sort", "radius": 0.1}]}
INTERVALS = [(0.4, 0.7), (0.8, 1.1), (0.71, 0.9)]


@pytest.fixture
def report() -> dict:
    """A fresh copy, which a test may change."""
    return copy.deepcopy(REPORT)


@pytest.fixture
def full_report(report: dict) -> dict:
    """Calibrated, and with runs of transfer and trust."""
    report["verify"] |= {"calibrated": True, "anchors": 8}
    report["ranks"] = {"layers.0.q": {"kept": 2, "of": 3}}
    (target,) = report["verify"]["targets"]
    target["methods"] = copy.deepcopy(METHODS)
    for point, (low, high) in zip(target["points"], INTERVALS, strict=True):
        point |= {"low": low, "high": high}
    return report | copy.deepcopy({"transfer": TRANSFER, "trust": TRUST})
