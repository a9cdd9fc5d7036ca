"""True fine-tunes of held-out subsets beside their estimates, on the targets' test rows.

    python -m gradex.verify --num_subsets 8
    python -m gradex.verify --subsets sampled_tasks/mine.txt --start meta

Every subset is trained from the same start for the same number of optimizer steps. Finished ones
are kept, so that an interrupted verification goes on with the next. The estimator stands beside
the baselines and beside the mean of the other runs, which needs no gradient at all.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.arguments import EstimatorArguments, TrustArguments, combined, inheriting
from gradex.config import (
    main,
    option,
    require_fraction,
    require_not_negative,
    require_positive,
)
from gradex.data.subsets import MIXED_SIZES, Subset, format_subset, read_subsets, sample_subsets
from gradex.data.true_runs import read_all_runs, scores_of, write_runs
from gradex.errors import GradexError
from gradex.estimators import BASELINES, estimator_of, with_calibration
from gradex.estimators.calibration import Calibration
from gradex.estimators.protocol import Estimates
from gradex.gradients.store import GradientStore, open_store
from gradex.records import write_json
from gradex.reporting.csv_table import write_csv
from gradex.reporting.evidence import (
    Losses,
    Prediction,
    Truth,
    from_other_runs,
    lines,
    target_evidence,
    write_evidence,
)
from gradex.train_arguments import TrialArguments
from gradex.training.recipe import require_effect
from gradex.training.trials import make_trials

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
    """Returns the run folder: verify.json, verify.csv, evidence.csv, runs.json, config.yaml."""
    store = open_store(config.store)
    recorded = store.recorded_settings()
    config = replace(config, store=str(store.path))
    require_effect(config, recorded)
    config = inheriting(config, recorded)
    targets = [store.require_target(name) for name in config.target or store.targets]
    trials = make_trials(combined(recorded, config), store, targets, start=config.start)
    config, calibration = with_calibration(config, store, recipe=trials.recipe_hash)
    # What the estimates are calibrated on or fitted to is no evidence for them.
    known = read_all_runs(config.runs or [], recipe=trials.recipe_hash)
    known += calibration.anchors if calibration else []
    subsets = _held_out(config, store.sources, exclude=[run.subset for run in known])
    predictions, missing = _predictions(config, store, subsets, calibration)
    inputs = (store.fingerprint, store.data_hashes(), [sorted(subset) for subset in subsets])
    with runs.start("verify", config, output_dir=config.output_dir, inputs=inputs) as run:
        found = trials.run(subsets, run.part / "trials", order=store.sources)
        truth = Truth(*(scores_of(found, targets, split=split) for split in ("test", "select")))
        predictions += from_other_runs(subsets, truth, targets)
        named = [[name for name in store.sources if name in subset] for subset in subsets]
        table = [
            target_evidence(column, predictions, missing, truth.test)
            | {"points": _points(column, named, predictions[0].test, truth.test)}
            for column in range(len(targets))
        ]
        content = {
            "store": str(store.path),
            "estimator": config.estimator,
            "calibrated": predictions[0].test.calibrated,
            "start": config.start,
            "steps": trials.recipe.max_steps,
            "targets": table,
        }
        write_json(run.part / "verify.json", content)
        write_runs(run.part / "runs.json", found, recipe=trials.recipe_hash)
        write_evidence(run.part / "evidence.csv", table)
        _write_points(run.part / "verify.csv", table)
    for entry in table:
        log.info("%s", "\n".join(lines(entry)))
    return run.path


def _held_out(config: Config, names: Sequence[str], *, exclude: Sequence[Subset]) -> list[Subset]:
    """Subsets to fine-tune on, none of those that are excluded."""
    if config.subsets:
        asked = list(dict.fromkeys(read_subsets(Path(config.subsets), names)))
        drawn = [subset for subset in asked if subset not in set(exclude)]
        if drawn and len(drawn) < len(asked):
            log.info(
                "%s: left out: %d of %d subsets, which the estimates are calibrated on",
                config.subsets, len(asked) - len(drawn), len(asked),
            )  # fmt: skip
    else:
        sizes = [config.subset_size] if config.subset_size else MIXED_SIZES
        drawn = sample_subsets(
            names, config.num_subsets, sizes=sizes, seed=config.subset_seed, exclude=exclude
        )
    if not drawn:
        raise GradexError(
            "no subset to verify: the estimates are calibrated on every one of these; name others "
            "with --subsets, or another --subset_size"
        )
    return drawn


def _predictions(
    config: Config,
    store: GradientStore,
    subsets: Sequence[Subset],
    calibration: Calibration | None,
) -> tuple[list[Prediction], dict[str, str]]:
    """The estimator's, then the baselines'; and why some of these cannot be had."""
    found, missing = [_prediction(config, store, subsets, calibration)], {}
    for name in BASELINES:
        if name != config.estimator:
            try:
                found.append(_prediction(config.for_estimator(name), store, subsets))
            except GradexError as error:
                missing[name] = str(error)
    return found, missing


def _prediction(
    config: Config,
    store: GradientStore,
    subsets: Sequence[Subset],
    calibration: Calibration | None = None,
) -> Prediction:
    test, select = (
        estimator_of(config, calibration)
        .fit(store, targets=config.target, split=split)
        .predict(subsets)
        for split in ("test", "select")
    )
    in_losses = test.calibrated or config.estimator not in BASELINES
    return Prediction(config.estimator, test, select, in_losses=in_losses)


def _points(
    column: int, named: Sequence[list[str]], estimates: Estimates, truth: Losses
) -> list[dict[str, Any]]:
    """A target's fine-tunes one by one: what was estimated, within which bounds, and what came."""
    sides = (estimates.value, truth, estimates.low, estimates.high)
    keys = ("estimate", "truth", "low", "high")
    rows = zip(*(side[:, column].tolist() for side in sides), strict=True)
    known = [{k: None if math.isnan(x) else x for k, x in zip(keys, r, strict=True)} for r in rows]
    return [{"subset": names} | row for names, row in zip(named, known, strict=True)]


def _write_points(path: Path, targets: Sequence[dict[str, Any]]) -> None:
    keys = ("estimate", "truth", "low", "high")
    lines = (
        [
            format_subset(frozenset(point["subset"]), point["subset"]),
            entry["target"],
            *(point[key] for key in keys),
        ]
        for entry in targets
        for point in entry["points"]
    )
    write_csv(path, ["subset", "target", *keys], lines)


if __name__ == "__main__":
    raise SystemExit(main(verify, Config))
