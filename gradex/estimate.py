"""Predict the target loss of fine-tuning on subsets of the sources: a table, in seconds.

    python -m gradex.estimate --num_subsets 1000 --subset_size 0.5
    python -m gradex.estimate --store gradients/NAME --subsets sampled_tasks/mine.txt

Random subsets are kept in sampled_tasks/, so that the same ones can be used again.
"""

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradex import runs
from gradex.arguments import EstimatorArguments, SubsetArguments
from gradex.config import main, option
from gradex.data.subsets import Subset, find_subsets, format_subset
from gradex.estimators import make_estimator
from gradex.estimators.protocol import Displacing, Estimates, Estimator, members
from gradex.estimators.trust import find_trust, outside
from gradex.gradients.store import GradientStore, open_store

SHOWN = 5  # targets whose best subset is named on the screen
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(SubsetArguments, EstimatorArguments):
    target: list[str] | None = option(None, "targets to estimate; default: all of the store")
    output_dir: str | None = option(None, "the run's folder; default: runs/estimate/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        SubsetArguments.__post_init__(self)


def estimate(config: Config) -> Path:
    """Returns estimates.csv: subset,target,value,low,high,calibrated."""
    store = open_store(config.store)
    resolved = replace(config, store=str(store.path))
    with runs.start("estimate", resolved, output_dir=config.output_dir) as run:
        fitted = make_estimator(config).fit(store, targets=config.target)
        subsets = find_subsets(
            config.subsets, store.sources, count=config.num_subsets, size=config.subset_size,
            seed=config.seed, store=store.path.name,
        )  # fmt: skip
        estimates = fitted.predict(subsets)
        write_estimates(run.part / "estimates.csv", estimates, subsets, store.sources)
    _warn_outside(store, fitted, subsets)
    for column, target in enumerate(estimates.targets[:SHOWN]):
        best = int(estimates.value[:, column].argmin())
        log.info(
            "%s: lowest of %d estimates %.3f, with %s",
            target, len(subsets), estimates.value[best, column],
            format_subset(subsets[best], store.sources),
        )  # fmt: skip
    return run.path / "estimates.csv"


def _warn_outside(store: GradientStore, fitted: Estimator, subsets: Sequence[Subset]) -> None:
    """Say how many subsets lead farther than first-order changes were found to hold."""
    trust = find_trust(store)
    if trust is None or not isinstance(fitted, Displacing):
        return
    distances = trust.distances(fitted.displacements(members(subsets, store.sources)))
    far = distances[outside(trust.radius, distances)]
    if len(far):
        log.warning(
            "%d of %d subsets lie farther from the meta adapter (%.2g to %.2g of its norm) than "
            "first-order changes hold (%.2g); see %s",
            len(far), len(subsets), far.min(), far.max(), trust.radius, trust.folder,
        )  # fmt: skip


def write_estimates(
    path: Path, estimates: Estimates, subsets: Sequence[Subset], sources: Sequence[str]
) -> None:
    """One line a subset and target; an interval that is not there is left empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["subset", "target", "value", "low", "high", "calibrated"])
        for row, subset in enumerate(subsets):
            words = format_subset(subset, sources)
            for column, target in enumerate(estimates.targets):
                numbers = [m[row, column] for m in (estimates.value, estimates.low, estimates.high)]
                cells = ["" if math.isnan(x) else f"{x:.6g}" for x in numbers]
                table.writerow([words, target, *cells, str(estimates.calibrated).lower()])


if __name__ == "__main__":
    raise SystemExit(main(estimate, Config))
