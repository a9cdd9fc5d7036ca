"""What would happen: predicted target losses of fine-tuning on any subset, from the store."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from gradex.arguments import EstimatorArguments, TrustArguments
from gradex.data.true_runs import TrueRun, read_all_runs
from gradex.errors import GradexError, unknown
from gradex.estimators import baselines
from gradex.estimators.averaged import Averaged
from gradex.estimators.calibrated import Calibrated
from gradex.estimators.calibration import Calibration, find_calibration
from gradex.estimators.flow import Flow
from gradex.estimators.linear import Linear
from gradex.estimators.logistic import Logistic
from gradex.estimators.protocol import Estimator
from gradex.estimators.published import Published
from gradex.estimators.shift import Shift
from gradex.estimators.surrogate import Surrogate
from gradex.gradients.store import GradientStore

ArgumentsT = TypeVar("ArgumentsT", bound=EstimatorArguments)
Make = Callable[[EstimatorArguments, Sequence[TrueRun]], Estimator]
ESTIMATORS: dict[str, Make] = {
    "linear": lambda a, runs: Averaged(lambda: Linear(compress=a.compress, **_given(lam=a.lam))),
    "flow": lambda a, runs: Averaged(lambda: Flow(compress=a.compress, **_given(t=a.t))),
    "logistic": lambda a, runs: Published() if a.as_published else Logistic(**_given(lam=a.lam)),
    "logistic_loss": lambda a, runs: Logistic(objective="loss", **_given(lam=a.lam)),
    "shift": lambda a, runs: Shift(Linear(**_given(lam=a.lam))),
    "surrogate": lambda a, runs: Surrogate(runs),
    "influence": lambda a, runs: baselines.influence(),
    "cosine": lambda a, runs: baselines.cosine(),
    "representation": lambda a, runs: baselines.representation(),
    "ngram": lambda a, runs: baselines.ngram(allow_pickle=_trusts_pickle(a)),
    "random": lambda a, runs: baselines.Random(),
    "constant": lambda a, runs: baselines.Constant(),
}
# Cheap ones, which verify holds beside the others. Their raw values are no losses.
BASELINES = ("influence", "cosine", "representation", "ngram", "random", "constant")


# What a calibration tries where no strength is said: the flag, and its values, the usual one first.
STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "linear": ("lam", (0.01, 0.1, 0.001)),
    "flow": ("t", (300.0, 30.0, 3000.0)),
    "logistic_loss": ("lam", (1e-6, 1e-4, 1e-2)),
}


def with_calibration(
    arguments: ArgumentsT, store: GradientStore, *, recipe: str | None = None
) -> tuple[ArgumentsT, Calibration | None]:
    """The calibration that the flags mean, and the flags with its folder named."""
    wanted = arguments.calibration
    if wanted == "auto" and arguments.estimator not in STRENGTHS:
        wanted = "none"
    found = find_calibration(store, wanted, recipe=recipe)
    return replace(arguments, calibration=str(found.folder) if found else "none"), found


def estimator_of(
    arguments: EstimatorArguments, calibration: Calibration | None, *, metric: str = "loss"
) -> Estimator:
    """The estimator that the flags name, calibrated where there is something to calibrate it on."""
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
    flag, values = STRENGTHS.get(arguments.estimator, ("lam", ()))
    if getattr(arguments, flag) is not None or not values:
        values = (getattr(arguments, flag),)
    candidates = {
        f"{flag} {value}": partial(make_estimator, replace(arguments, **{flag: value}))
        for value in values
    }
    return Calibrated(candidates, anchors, metric=metric)


def make_estimator(
    arguments: EstimatorArguments, *, runs: Sequence[TrueRun] | None = None
) -> Estimator:
    """The estimator that the flags name. `runs` are true fine-tunes, for those that need them;
    where none are given, those of the files that the flags name."""
    if arguments.estimator not in ESTIMATORS:
        raise unknown("estimator", arguments.estimator, ESTIMATORS, "--estimator")
    known = read_all_runs(arguments.runs or []) if runs is None else runs
    return ESTIMATORS[arguments.estimator](arguments, known)


def _given(**flags: float | None) -> dict[str, float]:
    """The flags that were said; for the others every estimator has its own default."""
    return {name: value for name, value in flags.items() if value is not None}


def _trusts_pickle(arguments: EstimatorArguments) -> bool:
    """Only stages that read files of rows have the flag."""
    return isinstance(arguments, TrustArguments) and arguments.allow_pickle
