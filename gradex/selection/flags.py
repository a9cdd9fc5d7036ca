"""The flags of a search: what to choose for, what the choice keeps to, and how to search."""

from dataclasses import dataclass
from typing import Literal

from gradex.arguments import EstimatorArguments, SubsetArguments
from gradex.config import (
    option,
    require_fraction,
    require_not_negative,
    require_owner,
    require_positive,
)
from gradex.errors import GradexError, unknown
from gradex.estimators import BASELINES
from gradex.selection.worth import MIN_GAIN

LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6  # beyond, one target is all that counts
# Flags that some methods alone have: with another one they would be read and mean nothing.
METHODS_WITH = {
    "min_gain": ("forward", "backward"),
    "only_sure": ("forward", "backward"),
    "screen": ("forward",),
    "start": ("swap",),
    "rank_by": ("topk",),
    "top_k": ("topk", "random_ensemble", "random"),
    "threshold": ("random_ensemble",),
    "subsets": ("random_ensemble", "surrogate"),
    "num_subsets": ("random_ensemble", "surrogate"),
    "subset_size": ("random_ensemble", "surrogate", "random"),
    "seed": ("random_ensemble", "surrogate", "random"),
}


@dataclass(frozen=True)
class TargetArguments:
    """What sources are chosen for."""

    target: list[str] | None = option(
        None, "targets to choose for, all at once; default: the store's first"
    )
    target_weights: list[float] | None = option(
        None, "what each of several targets counts; default: the same"
    )
    robust: bool = option(
        False, "of several targets the one that fares worst counts, each against its own spread"
    )

    def __post_init__(self):
        named = self.target or []
        for name in named:
            if named.count(name) > 1:
                raise GradexError(f"--target: names '{name}' twice; name every target once")
        if self.robust and len(named) < 2:
            raise GradexError(
                f"--robust: found {len(named)} targets named; name several with --target"
            )
        if self.target_weights is not None:
            self._require_weights(len(named))

    def _require_weights(self, count: int) -> None:
        if self.robust:
            raise GradexError(
                "--target_weights: found with --robust, which looks at the worst target alone; "
                "leave one of them out"
            )
        if len(self.target_weights) != count:
            raise GradexError(
                f"--target_weights: found {len(self.target_weights)} weights for {count} targets; "
                "name the targets with --target and give each a weight"
            )
        for weight in self.target_weights:
            if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
                raise GradexError(
                    f"--target_weights: found {weight:g}, expected numbers above 0, from "
                    f"{LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"
                )


@dataclass(frozen=True)
class RuleArguments:
    """What the choice has to keep to."""

    must: list[str] | None = option(None, "sources to choose in any case; default: none")
    never: list[str] | None = option(
        None, "sources to leave out, of the estimates as well; default: none"
    )
    max_sources: int | None = option(None, "at most this many sources; default: no limit")
    budget: int | None = option(
        None, "at most so many rows or tokens in the chosen sources together; default: no limit"
    )
    budget_unit: Literal["rows", "tokens"] = option("rows", "what the budget counts")
    min_share: float | None = option(
        None, "the least share of the training mix that a chosen source gets; default: as its rows"
    )
    max_share: float | None = option(
        None, "the largest share of the training mix that a source gets; default: as its rows"
    )

    def __post_init__(self):
        require_positive(self, "max_sources", "budget")
        require_fraction(self, "min_share", "max_share")
        if self.budget_unit != "rows" and self.budget is None:
            raise GradexError("--budget_unit: found without a --budget that it would count")


@dataclass(frozen=True)
class MethodArguments(SubsetArguments):
    """How to search."""

    method: Literal[
        "forward", "backward", "swap", "random_ensemble", "surrogate", "topk", "all", "random"
    ] = option(
        "forward", "forward: add the best source, step by step; backward: take out the one least "
        "needed; swap: add, drop and exchange until nothing improves; random_ensemble: rank "
        "sources by the random subsets that hold them; surrogate: the best subset of a regression "
        "on random subsets; topk: the best single sources by a baseline; all and random, to "
        "compare with"
    )  # fmt: skip
    min_gain: float = option(
        MIN_GAIN, "forward, backward: a source is worth having if it gains more than this share of "
        "all gained since the worst source"
    )  # fmt: skip
    only_sure: bool = option(
        False, "forward, backward: keep no sources whose gain together is within its 90% interval"
    )  # fmt: skip
    screen: int | None = option(
        None, "forward: try only so many sources at a step, the best when all were last tried, "
        "which is done every few steps; default: try all at every step"
    )  # fmt: skip
    start: list[str] | None = option(
        None, "swap: where to start, a selection or names of sources; default: what forward chooses"
    )
    rank_by: str | None = option(
        None, "topk: the baseline whose values of single sources rank them; default: cosine"
    )
    top_k: int | None = option(
        None, "topk, random_ensemble, random: how many sources; default: the prefix of the "
        "ensemble's ranking that scores best, and the --subset_size of random"
    )  # fmt: skip
    threshold: float | None = option(
        None, "random_ensemble: take the sources whose effect, the mean of the subsets that hold "
        "it less that of the others, is at most this; default: the prefix that scores best"
    )  # fmt: skip

    def __post_init__(self):
        SubsetArguments.__post_init__(self)
        require_positive(self, "screen", "top_k")
        require_not_negative(self, "min_gain")
        require_owner(self, "method", METHODS_WITH)
        if self.rank_by is not None and self.rank_by not in BASELINES:
            raise unknown("baseline", self.rank_by, BASELINES, "--rank_by")
        if self.top_k is not None and self.threshold is not None:
            raise GradexError("--top_k and --threshold both say how many; leave one of them out")


@dataclass(frozen=True)
class SearchArguments(MethodArguments, RuleArguments, TargetArguments, EstimatorArguments):
    """All that a search goes by."""

    def __post_init__(self):
        for group in (MethodArguments, RuleArguments, TargetArguments, EstimatorArguments):
            group.__post_init__(self)
        limits = (self.top_k, self.max_sources, self.budget)
        if self.method == "topk" and limits == (None, None, None):
            raise GradexError("--method topk: say how many sources to take with --top_k")
