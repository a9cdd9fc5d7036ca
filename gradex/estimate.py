"""Predict the target loss of fine-tuning on subsets of the sources: a table, in seconds.

    python -m gradex.estimate --num_subsets 1000 --subset_size 0.5
    python -m gradex.estimate --store gradients/NAME --subsets sampled_tasks/mine.txt
    python -m gradex.estimate --anchors 8 --metric exact_match

Random subsets are kept in sampled_tasks/, so that the same ones can be used again. Estimates rank
subsets; with a calibration (see calibrate, or --anchors) they are losses with intervals.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gradex import runs
from gradex.arguments import (
    AnchorArguments,
    EstimatorArguments,
    SubsetArguments,
    TrustArguments,
    combined,
    inheriting,
    keep,
)
from gradex.config import main, option
from gradex.data.metrics import SCORES
from gradex.data.subsets import Subset, find_subsets, format_subset
from gradex.errors import GradexError, unknown
from gradex.estimators import estimator_of, make_estimator, with_calibration
from gradex.estimators.calibrated import Calibrated
from gradex.estimators.calibration import Calibration
from gradex.estimators.protocol import Displacing, Estimates, Estimator, members
from gradex.estimators.ranks import Ranks, rank_intervals
from gradex.estimators.row_outcomes import row_outcomes
from gradex.estimators.trust import find_trust, outside
from gradex.gradients.store import GradientStore, open_store
from gradex.reporting.estimates_table import write_estimates, write_row_outcomes
from gradex.train_arguments import TrialArguments
from gradex.training.anchors import calibrate_on, pick_anchors
from gradex.training.trials import Trials, make_trials

SHOWN = 5  # targets whose best subset is named on the screen
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(SubsetArguments, AnchorArguments, EstimatorArguments, TrustArguments):
    target: list[str] | None = option(None, "targets to estimate; default: all of the store")
    metric: str = option("loss", "what to predict: loss, or the tasks' metric once calibrated")
    per_row: bool = option(False, "also predict every target row, in per_row.csv")
    anchors: int | None = option(
        None, "calibrate first, on so many true fine-tunes from the base; default: none"
    )
    output_dir: str | None = option(None, "the run's folder; default: runs/estimate/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        AnchorArguments.__post_init__(self)
        SubsetArguments.__post_init__(self)
        if self.metric not in SCORES:
            raise unknown("metric", self.metric, SCORES, "--metric")
        if self.anchors is not None and self.calibration != "auto":
            raise GradexError(
                f"--anchors: found with --calibration {self.calibration}, which says what to "
                "calibrate on already; leave one of them out"
            )


def estimate(config: Config) -> Path:
    """Returns estimates.csv: subset,target,value,low,high,calibrated,rank_low,rank_high."""
    store = open_store(config.store)
    targets = [store.require_target(name) for name in config.target or store.targets]
    config = replace(config, store=str(store.path))
    if config.per_row:
        _require_rows(config)
    calibration = None
    if config.anchors is None:
        config, calibration = with_calibration(config, store)
    with runs.start("estimate", config, output_dir=config.output_dir) as run:
        subsets = find_subsets(
            config.subsets, store.sources, count=config.num_subsets, size=config.subset_size,
            seed=config.seed, store=store.path.name,
        )  # fmt: skip
        fitted = _fitted(config, calibration, store, targets, folder=run.part)
        inner = fitted.inner if isinstance(fitted, Calibrated) else fitted
        estimates = fitted.predict(subsets)
        ranks = _ranks(inner, store, subsets, estimates)
        file = run.part / "estimates.csv"
        write_estimates(file, estimates, subsets, store.sources, ranks=ranks)
        if config.per_row:
            found = row_outcomes(inner, store, subsets, targets)
            write_row_outcomes(run.part / "per_row.csv", found, subsets, store.sources)
    _warn_outside(store, inner, subsets, rest_on="anchors" if estimates.calibrated else "ranks")
    _show(estimates, subsets, store, metric=config.metric)
    return run.path / "estimates.csv"


def _require_rows(config: Config) -> None:
    if not isinstance(make_estimator(config), Displacing):
        raise GradexError(
            f"--per_row: rows are predicted by linear and flow, found --estimator "
            f"{config.estimator}"
        )


def _fitted(
    config: Config,
    calibration: Calibration | None,
    store: GradientStore,
    targets: list[str],
    *,
    folder: Path,
) -> Estimator:
    """The estimator that the flags name; its anchors are first fine-tuned on if they are to be."""
    if config.anchors is None:
        return estimator_of(config, calibration, metric=config.metric).fit(store, targets=targets)
    trials = _plain_trials(config, store, targets)
    trials.require_metric(config.metric)
    anchors = pick_anchors(config, config, store, targets, count=config.anchors)
    return calibrate_on(anchors, trials, config, store, folder=folder, metric=config.metric)


def _plain_trials(config: Config, store: GradientStore, targets: list[str]) -> Trials:
    """Fine-tunes as calibrate makes them without flags of training."""
    recorded = store.recorded_settings()
    plain = inheriting(TrialArguments(), recorded)
    settings = combined(recorded, plain) | keep(asdict(config), TrustArguments)
    return make_trials(settings, store, targets, start=plain.start)


def _ranks(
    inner: Estimator, store: GradientStore, subsets: Sequence[Subset], estimates: Estimates
) -> tuple[Ranks, Ranks] | None:
    """How far ranks may be off, for estimates without an interval of their own."""
    if estimates.calibrated or not isinstance(inner, Displacing):
        return None
    return rank_intervals(inner, store, subsets, estimates.targets)


def _warn_outside(
    store: GradientStore, inner: Estimator, subsets: Sequence[Subset], *, rest_on: str
) -> None:
    """Say how many subsets lead farther than first-order changes were found to hold."""
    trust = find_trust(store)
    if trust is None or not isinstance(inner, Displacing):
        return
    distances = trust.distances(inner.displacements(members(subsets, store.sources)))
    far = distances[outside(trust.radius, distances)]
    if len(far):
        log.warning(
            "%d of %d subsets lie farther from the meta adapter (%.2g to %.2g of its norm) than "
            "first-order changes hold (%.2g): values there rest on %s alone; see %s",
            len(far), len(subsets), far.min(), far.max(), trust.radius, rest_on, trust.folder,
        )  # fmt: skip


def _show(
    estimates: Estimates, subsets: Sequence[Subset], store: GradientStore, *, metric: str
) -> None:
    """The best subset of the first few targets."""
    best = estimates.value.argmin(0) if metric == "loss" else estimates.value.argmax(0)
    for column, target in enumerate(estimates.targets[:SHOWN]):
        row = int(best[column])
        bounds = f" ({estimates.low[row, column]:.3f} to {estimates.high[row, column]:.3f})"
        log.info(
            "%s: best of %d estimates %.3f%s, with %s",
            target, len(subsets), estimates.value[row, column],
            bounds if estimates.calibrated else "",
            format_subset(subsets[row], store.sources),
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(estimate, Config))
