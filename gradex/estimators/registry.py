"""The name of every estimator, and how it is made from the flags."""

from collections.abc import Callable, Sequence

from gradex.arguments import EstimatorArguments, TrustArguments
from gradex.data.true_runs import TrueRun, read_all_runs
from gradex.errors import unknown
from gradex.estimators import baselines
from gradex.estimators.averaged import Averaged
from gradex.estimators.flow import Flow
from gradex.estimators.linear import Linear
from gradex.estimators.logistic import Logistic
from gradex.estimators.protocol import Estimator
from gradex.estimators.published import Published
from gradex.estimators.shift import Shift
from gradex.estimators.surrogate import Surrogate

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
