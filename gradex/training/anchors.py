"""Anchors: a few subsets, chosen by what they teach, and fine-tuned on for real."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gradex.arguments import AnchorArguments, EstimatorArguments
from gradex.data.subsets import Subset, sample_subsets
from gradex.errors import GradexError
from gradex.estimators import make_calibrated, make_estimator, require_to_calibrate
from gradex.estimators.calibrated import FEWEST_ANCHORS, Calibrated, choose_anchors
from gradex.estimators.calibration import Calibration, write_calibration
from gradex.gradients.store import GradientStore
from gradex.training.trials import Trials

POOL = 400  # random subsets that the anchors are chosen from


def pick_anchors(
    estimating: EstimatorArguments,
    picking: AnchorArguments,
    store: GradientStore,
    targets: Sequence[str],
    *,
    count: int,
    exclude: Iterable[Subset] = (),
) -> list[Subset]:
    """The subsets of a random pool whose outcomes would tell most, one after the other."""
    require_to_calibrate(estimating)
    if count < FEWEST_ANCHORS:
        raise GradexError(
            f"--anchors: found {count}, a calibration needs at least {FEWEST_ANCHORS} true "
            "fine-tunes"
        )
    pool = sample_subsets(
        store.sources, max(POOL, count), sizes=[picking.anchor_size], seed=picking.anchor_seed,
        exclude=exclude,
    )  # fmt: skip
    if len(pool) < count:
        raise GradexError(
            f"--anchors: found {count}, but with --anchor_size {picking.anchor_size:g} "
            f"{store.path} has only {len(pool)} subsets of its {len(store.sources)} sources; a "
            f"calibration needs at least {FEWEST_ANCHORS}: ask for fewer, or for another size"
        )
    fitted = make_estimator(estimating).fit(store, targets=targets)
    return choose_anchors(fitted, store.sources, pool, count)


def calibrate_on(
    anchors: Sequence[Subset],
    trials: Trials,
    estimating: EstimatorArguments,
    store: GradientStore,
    *,
    folder: Path,
    metric: str = "loss",
) -> Calibrated:
    """Fine-tune on the anchors and fit to what they came to; the folder becomes a calibration.

    Anchors whose results lie in the folder are not trained again.
    """
    found = trials.run(anchors, folder / "trials", order=store.sources)
    fitted = make_calibrated(estimating, found, metric=metric).fit(store, targets=trials.targets)
    start = "base" if trials.start is None else "meta"
    calibration = Calibration(folder, start, trials.recipe_hash, found)
    write_calibration(calibration, store, {"estimator": estimating.estimator} | fitted.summary())
    return fitted
