"""True fine-tunes of held-out subsets beside their estimates, on the targets' test rows.

    python -m gradex.verify --num_subsets 8
    python -m gradex.verify --subsets sampled_tasks/mine.txt

Every subset is trained from the same start for the same number of optimizer steps. Finished ones
are kept, so that an interrupted verification goes on with the next.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex import runs
from gradex.arguments import (
    EstimatorArguments,
    TrainArguments,
    TrialArguments,
    TrustArguments,
    combined,
    keep,
)
from gradex.config import (
    main,
    option,
    require_fraction,
    require_not_negative,
    require_positive,
    with_defaults,
)
from gradex.data.metrics import relative_error, spearman
from gradex.data.subsets import Subset, format_subset, read_subsets, sample_subsets
from gradex.data.true_runs import scores_of
from gradex.estimators import make_estimator
from gradex.estimators.protocol import Estimates
from gradex.gradients.store import GradientStore, open_store
from gradex.records import write_json
from gradex.training.trials import make_trials

MIXED_SIZES = (0.5, 0.25, 0.75)
SUMMARY = ("target", "spearman", "n", "select_spearman")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrialArguments, TrustArguments, EstimatorArguments):
    num_subsets: int = option(8, "random subsets to fine-tune on")
    subset_size: float | None = option(
        None, "their size as a share of the sources; default: a half, a quarter, three quarters"
    )
    subsets: str | None = option(None, "a file of subsets, one a line; default: random ones")
    subset_seed: int = option(1, "seed of the random subsets")
    output_dir: str | None = option(None, "the run's folder; default: runs/verify/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        TrialArguments.__post_init__(self)
        require_positive(self, "num_subsets")
        require_not_negative(self, "subset_seed")
        require_fraction(self, "subset_size")


def verify(config: Config) -> Path:
    """Returns the run folder: verify.json, verify.csv, config.yaml."""
    store = open_store(config.store)
    recorded = store.recorded_settings()
    config = replace(config, store=str(store.path))
    config = with_defaults(config, keep(recorded, TrainArguments))
    subsets = _held_out(config, store.sources)
    estimates = _estimates(config, store, subsets, split="test")
    chosen_by = _estimates(config, store, subsets, split="select")
    inputs = (store.fingerprint, store.data_hashes(), [sorted(subset) for subset in subsets])
    with runs.start("verify", config, output_dir=config.output_dir, inputs=inputs) as run:
        settings = combined(recorded, config)
        trials = make_trials(settings, store, estimates.targets, start=config.start)
        found = trials.run(subsets, run.part / "trials", order=store.sources)
        truth = scores_of(found, trials.targets, split="test")
        table = [
            _target_table(column, estimates, chosen_by, truth, subsets=subsets, store=store)
            for column in range(truth.shape[1])
        ]
        content = {
            "store": str(store.path),
            "estimator": config.estimator,
            "calibrated": estimates.calibrated,
            "steps": trials.recipe.max_steps,
            "targets": table,
        }
        write_json(run.part / "verify.json", content)
        _write_csv(run.part / "verify.csv", table)
    for entry in table:
        log.info(
            "%s: Spearman %.2f over %d fine-tunes (of estimates from select rows: %.2f)",
            *(entry[key] for key in SUMMARY),
        )
    return run.path


def _estimates(
    config: Config, store: GradientStore, subsets: Sequence[Subset], *, split: str
) -> Estimates:
    """Estimates from one split: the test rows' are held against the truth on the same rows, the
    select rows' are those that a selection goes by."""
    fitted = make_estimator(config)
    return fitted.fit(store, targets=config.target, split=split).predict(subsets)


def _held_out(config: Config, names: Sequence[str]) -> list[Subset]:
    if config.subsets:
        return read_subsets(Path(config.subsets), names)
    sizes = [config.subset_size] if config.subset_size else MIXED_SIZES
    return sample_subsets(names, config.num_subsets, sizes=sizes, seed=config.subset_seed)


def _target_table(
    column: int,
    estimates: Estimates,
    chosen_by: Estimates,
    truth: Float[np.ndarray, "subset target"],
    *,
    subsets: Sequence[Subset],
    store: GradientStore,
) -> dict[str, Any]:
    """One target: rank correlation and errors, beside the best constant of the other runs."""
    predicted, true = estimates.value[:, column], truth[:, column]
    points = [
        {"subset": [n for n in store.sources if n in s], "estimate": float(e), "truth": float(t)}
        for s, e, t in zip(subsets, predicted, true, strict=True)
    ]
    return {
        "target": estimates.targets[column],
        "n": len(points),
        "spearman": _spearman(predicted, true),
        "select_spearman": _spearman(chosen_by.value[:, column], true),
        "relative_error": relative_error(predicted.tolist(), true.tolist()),
        "constant_relative_error": relative_error(_mean_of_others(true).tolist(), true.tolist()),
        "points": points,
    }


def _spearman(estimate: np.ndarray, truth: np.ndarray) -> float:
    return spearman(estimate.tolist(), truth.tolist())


def _mean_of_others(values: np.ndarray) -> np.ndarray:
    """For each value the mean of all others: what one would say without any estimate."""
    if len(values) < 2:
        return np.full_like(values, np.nan)
    return (values.sum() - values) / (len(values) - 1)


def _write_csv(path: Path, targets: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["subset", "target", "estimate", "truth"])
        for entry in targets:
            for point in entry["points"]:
                words = format_subset(frozenset(point["subset"]), point["subset"])
                numbers = (point["estimate"], point["truth"])
                table.writerow([words, entry["target"], *(f"{x:.6g}" for x in numbers)])


if __name__ == "__main__":
    raise SystemExit(main(verify, Config))
