"""The estimator that a stage's flags mean: calibrated where there is something to calibrate on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from gradex.arguments import EstimatorArguments
from gradex.data.true_runs import TrueRun
from gradex.errors import GradexError
from gradex.estimators.calibrated import Calibrated
from gradex.estimators.calibration import Calibration, find_calibration
from gradex.estimators.protocol import Estimator
from gradex.estimators.registry import make_estimator
from gradex.gradients.store import GradientStore

# What a calibration tries where no strength is said: the flag, and its values, the usual one first.
STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "linear": ("lam", (0.003, 0.03, 0.0003)),
    "flow": ("t", (300.0, 30.0, 3000.0)),
    "logistic_loss": ("lam", (1e-6, 1e-4, 1e-2)),
}
ArgumentsT = TypeVar("ArgumentsT", bound=EstimatorArguments)


def with_calibration(
    arguments: ArgumentsT, store: GradientStore, *, recipe: str | None = None
) -> tuple[ArgumentsT, Calibration | None]:
    """The flags with their calibration's folder named, and the calibration that they mean. Left to
    itself, an estimator without a strength to choose goes uncalibrated."""
    wanted = arguments.calibration
    if wanted == "auto" and arguments.estimator not in STRENGTHS:
        wanted = "none"
    found = find_calibration(store, wanted, recipe=recipe)
    return replace(arguments, calibration=str(found.folder) if found else "none"), found


def estimator_of(
    arguments: EstimatorArguments, calibration: Calibration | None, *, metric: str = "loss"
) -> Estimator:
    """The estimator that the flags name, calibrated where a calibration is given."""
    if calibration is not None:
        return make_calibrated(arguments, calibration.anchors, metric=metric)
    if metric != "loss":
        raise GradexError(
            f"--metric {metric}: only true fine-tunes tell it from a loss; run calibrate first, or "
            "say --anchors 8"
        )
    return make_estimator(arguments)


def make_calibrated(
    arguments: EstimatorArguments, anchors: Sequence[TrueRun], *, metric: str = "loss"
) -> Calibrated:
    """The estimator with the strength that its anchors speak for, where none is said."""
    require_to_calibrate(arguments)
    flag, values = STRENGTHS.get(arguments.estimator, ("lam", (None,)))
    said = getattr(arguments, flag)
    candidates = {
        f"{flag} {value}": partial(make_estimator, replace(arguments, **{flag: value}))
        for value in (values if said is None else (said,))
    }
    return Calibrated(candidates, anchors, metric=metric)


def require_to_calibrate(arguments: EstimatorArguments) -> None:
    """Refuse what is fitted to true losses itself: it tells its own runs all too well."""
    if arguments.estimator == "surrogate":
        raise GradexError(
            "--estimator surrogate: is fitted to true fine-tunes and needs no calibration; say "
            "--calibration none, and name the fine-tunes with --runs"
        )
