"""Anchors: a few subsets, chosen by what they teach, and fine-tuned on for real."""

from pathlib import Path

from gradex.arguments import EstimatorArguments
from gradex.data.subsets import Subset, sample_subsets
from gradex.data.true_runs import write_runs
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.calibrated import FEWEST_ANCHORS, choose_anchors
from gradex.estimators.calibration import RECORD, Calibration
from gradex.gradients.store import GradientStore
from gradex.records import write_json
from gradex.training.trials import Trials

POOL = 400  # random subsets that the anchors are chosen from


def pick_anchors(
    arguments: EstimatorArguments, store: GradientStore, targets: list[str], *,
    count: int, size: float, seed: int,
) -> list[Subset]:  # fmt: skip
    """The subsets of a random pool whose outcomes would tell most, of the asked size."""
    if count < FEWEST_ANCHORS:
        raise GradexError(
            f"--anchors: found {count}, a calibration needs at least {FEWEST_ANCHORS} true "
            "fine-tunes"
        )
    pool = sample_subsets(store.sources, POOL, sizes=[size], seed=seed)
    if len(pool) < count:
        raise GradexError(
            f"--anchors: found {count}, but {store.path} has only {len(pool)} subsets of "
            f"{len(pool[0])} of its {len(store.sources)} sources; ask for fewer, or for another "
            "--anchor_size"
        )
    fitted = make_estimator(arguments).fit(store, targets=targets)
    return choose_anchors(fitted, store.sources, pool, count)


def train_anchors(
    trials: Trials, store: GradientStore, subsets: list[Subset], folder: Path, *, start: str
) -> Calibration:
    """Fine-tune on every anchor; those that lie in the folder are not trained again."""
    found = trials.run(subsets, folder / "trials", order=store.sources)
    calibration = Calibration(folder, start, trials.recipe_hash, found)
    write_runs(folder / "runs.json", found, recipe=calibration.recipe)
    return calibration


def write_calibration(calibration: Calibration, store: GradientStore, **found: object) -> None:
    """What makes a folder a calibration, with what it found."""
    record = {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "start": calibration.start,
        "recipe": calibration.recipe,
    }
    write_json(calibration.folder / RECORD, record | found)
