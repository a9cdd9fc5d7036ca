"""The surrogate: log losses of true fine-tunes, regressed on which sources they were trained on.

It reads no gradient. `ridge` gives every source one effect (Ilyas et al., "Datamodels: Predicting
Predictions from Training Data", ICML 2022, arXiv 2202.00622). `rbf`, kernel ridge with
exp(-d / width) for subsets that differ in a share d of the sources, also sees what sources do
together (Zhang et al., "Efficient Estimation of Kernel Surrogate Models for Task Attribution", ICLR
2026, arXiv 2602.03783, where the width is 1). Every target has the strength (of STRENGTHS in
kernel_ridge) and the width (of WIDTHS) that predict its left-out subsets best.

Seeds of one subset are averaged: two runs of it would vouch for each other. The interval is the
value times and over exp(q r): r is the root mean square of what fits without a subset, their choice
of strength and width included, miss of its log loss, and q the quantile of Student's t for 90%. It
is for subsets drawn as those of the runs were; others may be farther off.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import t as student

from gradex.data.subsets import Subset, membership
from gradex.data.true_runs import TrueRun, scores_of
from gradex.errors import GradexError, unknown
from gradex.estimators.kernel_ridge import Kernel, fit, linear, predict_left_out, rbf
from gradex.estimators.protocol import Estimates, members, named_or_all
from gradex.gradients.store import GradientStore

FEWEST = 4
LEVEL = 0.9
WIDTHS = (0.5, 2.0, 8.0)
KERNELS: Mapping[str, Sequence[Kernel]] = {"ridge": [linear], "rbf": [rbf(w) for w in WIDTHS]}
Losses = Float[np.ndarray, "run target"]


class Surrogate:
    """See the module. Fitted values end in an underscore."""

    def __init__(self, runs: Sequence[TrueRun], *, kernel: str = "rbf"):
        if kernel not in KERNELS:
            raise unknown("kernel", kernel, KERNELS)
        self.runs, self.kernel = runs, kernel

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Surrogate":
        """The regression on the runs' losses; of the store it reads the names alone."""
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        _require_subsets([run.subset for run in self.runs], self.sources_)
        losses = scores_of(self.runs, self.targets_, split=split)
        _require_losses(losses, self.targets_)
        subsets, log_loss = _by_subset([run.subset for run in self.runs], losses)
        rows, kernels = membership(subsets, self.sources_), KERNELS[self.kernel]
        self.fitted_ = fit(rows, log_loss, kernels=kernels)
        missed = log_loss - predict_left_out(rows, log_loss, kernels=kernels)
        quantile = student.ppf((1 + LEVEL) / 2, len(rows) - 1)
        self.reach_: Float[np.ndarray, " target"] = quantile * np.sqrt((missed**2).mean(0))
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        value = self.fitted_.predict(members(subsets, self.sources_))
        low, high = np.exp(value - self.reach_), np.exp(value + self.reach_)
        return Estimates(self.targets_, np.exp(value), low, high, calibrated=True)


def leave_one_out(subsets: Sequence[Subset], losses: Losses, *, kernel: str) -> Losses:
    """Every run as the runs of the other subsets predict it, which choose strength and width; nan
    where these are too few.

    Where the others say little of a run, it is told their mean, which is the lower the higher its
    own loss is: rank correlations of such predictions are below 0 where nothing is known.
    """
    distinct, log_loss = _by_subset(subsets, losses)
    if len(distinct) <= FEWEST:
        return np.full_like(losses, np.nan)
    rows = membership(distinct, sorted(frozenset().union(*distinct)))
    said = np.exp(predict_left_out(rows, log_loss, kernels=KERNELS[kernel]))
    return said[[distinct.index(subset) for subset in subsets]]


def _by_subset(
    subsets: Sequence[Subset], losses: Losses
) -> tuple[list[Subset], Float[np.ndarray, "subset target"]]:
    """The distinct subsets, and the mean log losses of each one's runs."""
    distinct = list(dict.fromkeys(subsets))
    log_loss = np.log(np.where(_are_losses(losses), losses, np.nan))
    means = [log_loss[[other == subset for other in subsets]].mean(0) for subset in distinct]
    return distinct, np.stack(means)


def _are_losses(values: Losses) -> Bool[np.ndarray, "run target"]:
    return np.isfinite(values) & (values > 0)


def _require_subsets(subsets: Sequence[Subset], sources: Sequence[str]) -> None:
    for name in sorted(frozenset().union(*subsets) - set(sources)):
        raise unknown("source", name, sources, "a true fine-tune")
    if len(set(subsets)) < FEWEST:
        raise GradexError(
            f"surrogate needs true fine-tunes of at least {FEWEST} subsets, found "
            f"{len(set(subsets))}; run calibrate or verify, and name the runs.json of its "
            "run with --runs"
        )


def _require_losses(values: Losses, targets: Sequence[str]) -> None:
    for run, column in np.argwhere(~_are_losses(values)):
        raise GradexError(
            f"a true fine-tune has a loss of {values[run, column]:g} on '{targets[column]}', "
            "expected a number above 0; leave it out of --runs"
        )
