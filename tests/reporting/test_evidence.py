"""Evidence tables: every method beside the others, and None for what does not apply."""

import csv
import json
from itertools import combinations

import numpy as np
import pytest

from gradex.data.evidence import log_r2, regret, squared_relative_error
from gradex.estimators.protocol import Estimates, uncalibrated
from gradex.estimators.surrogate import leave_one_out
from gradex.reporting.evidence import (
    MEASURES,
    OTHERS_MEAN,
    Prediction,
    Truth,
    from_other_runs,
    lines,
    target_evidence,
    write_evidence,
)

TARGETS = ["sort", "max"]
REGRESSIONS = ["ridge on the other runs", "kernel ridge on the other runs"]
SUBSETS = [frozenset(pair) for pair in list(combinations("abcde", 2))[:9]]


@pytest.fixture
def truth() -> Truth:
    rng = np.random.default_rng(0)
    test = np.exp(rng.normal(size=(9, 2)))
    return Truth(test, test * np.exp(0.01 * rng.normal(size=(9, 2))))


def rows_of(entry) -> dict:
    return {row["method"]: row for row in entry["methods"]}


@pytest.fixture
def entry(truth) -> dict:
    noisy = truth.test * np.exp(0.2 * np.random.default_rng(1).normal(size=(9, 2)))
    calibrated = Estimates(TARGETS, noisy, noisy * 0.5, noisy * 2, calibrated=True)
    raw = uncalibrated(TARGETS, -noisy)
    predictions = [
        Prediction("flow", calibrated, calibrated, in_losses=True),
        Prediction("cosine", raw, raw, in_losses=False),
        *from_other_runs(SUBSETS, truth, TARGETS),
    ]
    return target_evidence(1, predictions, {"ngram": "no text"}, truth.test)


def test_the_first_method_speaks_for_the_target(entry, truth):
    own = rows_of(entry)["flow"]
    assert {m: entry[m] for m in MEASURES} == {m: own[m] for m in MEASURES}
    assert entry["target"] == "max" and entry["n"] == 9
    noisy = truth.test * np.exp(0.2 * np.random.default_rng(1).normal(size=(9, 2)))
    assert entry["log_r2"] == pytest.approx(log_r2(noisy[:, 1], truth.test[:, 1]))
    assert entry["squared_relative_error"] == pytest.approx(
        squared_relative_error(noisy[:, 1], truth.test[:, 1])
    )
    assert entry["coverage"] == 1 and entry["spearman_low"] < entry["spearman"]


def test_values_that_are_no_losses_have_ranks_only(entry):
    own, other = rows_of(entry)["flow"], rows_of(entry)["cosine"]
    assert other["spearman"] == pytest.approx(-own["spearman"]) and other["regret"] > 0
    for measure in ("log_r2", "relative_error", "squared_relative_error", "coverage"):
        assert other[measure] is None


def test_the_mean_of_the_others_has_errors_and_no_ranks(entry):
    """Its ranks would be -1 by construction; a choice by it is one at random."""
    row = rows_of(entry)[OTHERS_MEAN]
    assert row["spearman"] is row["spearman_low"] is row["select_spearman"] is None
    assert row["relative_error"] == entry["constant_relative_error"] > 0
    assert row["regret"] == entry["random_regret"] > 0
    assert row["log_r2"] < 0, "a mean that leaves the run out explains nothing of it"


def test_regressions_on_the_others_stand_with_all_that_a_method_of_losses_has(entry, truth):
    """Of test losses for what is held against the truth, of select losses for the choice."""
    for method, kernel in zip(REGRESSIONS, ("ridge", "rbf"), strict=True):
        row = rows_of(entry)[method]
        test, select = (
            leave_one_out(SUBSETS, side, kernel=kernel)[:, 1] for side in (truth.test, truth.select)
        )
        assert row["log_r2"] == pytest.approx(log_r2(test, truth.test[:, 1]))
        assert row["regret"] == regret(select, truth.test[:, 1])
        for measure in ("spearman", "select_spearman", "relative_error"):
            assert row[measure] is not None
        assert row["coverage"] is None and row["calibrated"]


def test_a_choice_goes_by_select_rows(truth):
    """Estimates of test rows are held against the truth, and choose nothing."""
    right, wrong = uncalibrated(TARGETS, truth.test), uncalibrated(TARGETS, -truth.test)
    entry = target_evidence(0, [Prediction("x", right, wrong, in_losses=True)], {}, truth.test)
    true = truth.test[:, 0]
    assert entry["spearman"] == pytest.approx(1) and entry["select_spearman"] == pytest.approx(-1)
    assert entry["regret"] == pytest.approx(true.max() - true.min())


def test_what_cannot_be_had_stands_with_its_reason(entry, tmp_path):
    row = rows_of(entry)["ngram"]
    assert row["reason"] == "no text" and all(row[measure] is None for measure in MEASURES)
    text = lines(entry)
    assert "ngram: none, no text" in text and text[0] == "max, 9 true fine-tunes:"
    shown = ("flow", "cosine", OTHERS_MEAN, *REGRESSIONS)
    assert sum(line.startswith(shown) for line in text) == 5
    write_evidence(tmp_path / "evidence.csv", [entry, entry])
    table = list(csv.DictReader((tmp_path / "evidence.csv").read_text().splitlines()))
    assert len(table) == 12 and table[0]["method"] == "flow" and table[5]["reason"] == "no text"
    assert table[1]["log_r2"] == "" and float(table[0]["regret"]) == entry["regret"]


@pytest.mark.parametrize("count", [1, 2])
def test_few_runs_are_no_evidence(count):
    losses = np.arange(1.0, count + 1)[:, None]
    truth = Truth(losses, losses)
    raw = uncalibrated(["t"], losses)
    predictions = [
        Prediction("x", raw, raw, in_losses=True),
        *from_other_runs([frozenset({"a"})] * count, truth, ["t"]),
    ]
    entry = target_evidence(0, predictions, {}, losses)
    json.dumps(entry, allow_nan=False)
    assert entry["spearman"] is None and entry["relative_error"] == 0
    assert lines(entry)[-1] == "No R2 of log loss: the estimates are not calibrated."
