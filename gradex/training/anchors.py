"""Anchors: a few subsets, chosen by what they teach, and fine-tuned on for real."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from gradex.arguments import AnchorArguments, EstimatorArguments
from gradex.data.subsets import Subset, sample_subsets
from gradex.data.true_runs import write_runs
from gradex.errors import GradexError
from gradex.estimators import make_calibrated, make_estimator
from gradex.estimators.calibrated import FEWEST_ANCHORS, Calibrated, choose_anchors
from gradex.estimators.calibration import RECORD, Calibration
from gradex.gradients.store import GradientStore
from gradex.records import write_json
from gradex.training.trials import make_trials

POOL = 400  # random subsets that the anchors are chosen from


def make_calibration(
    estimating: EstimatorArguments,
    picking: AnchorArguments,
    settings: dict[str, Any],
    store: GradientStore,
    targets: Sequence[str],
    *,
    count: int,
    start: Literal["base", "meta"],
    folder: Path,
) -> tuple[Calibration, Calibrated]:
    """Fine-tune on `count` anchors; those whose results lie in the folder are not trained again."""
    anchors = pick_anchors(estimating, picking, store, targets, count=count)
    trials = make_trials(settings, store, targets, start=start)
    found = trials.run(anchors, folder / "trials", order=store.sources)
    write_runs(folder / "runs.json", found, recipe=trials.recipe_hash)
    fitted = make_calibrated(estimating, found).fit(store, targets=targets)
    return Calibration(folder, start, trials.recipe_hash, found), fitted


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
    if count < FEWEST_ANCHORS:
        raise GradexError(
            f"--anchors: found {count}, a calibration needs at least {FEWEST_ANCHORS} true "
            "fine-tunes"
        )
    pool = sample_subsets(
        store.sources, POOL, sizes=[picking.anchor_size], seed=picking.anchor_seed, exclude=exclude
    )
    if len(pool) < count:
        raise GradexError(
            f"--anchors: found {count}, but {store.path} has only {len(pool)} subsets of "
            f"{len(pool[0])} of its {len(store.sources)} sources; ask for fewer, or for another "
            "--anchor_size"
        )
    fitted = make_estimator(estimating).fit(store, targets=targets)
    return choose_anchors(fitted, store.sources, pool, count)


def write_calibration(calibration: Calibration, store: GradientStore, **found: object) -> None:
    """What makes a folder a calibration, with what it found."""
    record = {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "start": calibration.start,
        "recipe": calibration.recipe,
    }
    write_json(calibration.folder / RECORD, record | found)
