"""The name of every method of choosing sources, how it is run, and the flags that are its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradex.arguments import EstimatorArguments, SubsetArguments
from gradex.config import option, require_not_negative, require_owner, require_positive
from gradex.data.subsets import Subset, find_subsets, read_subsets
from gradex.errors import GradexError, unknown
from gradex.estimators import BASELINES, make_estimator
from gradex.gradients.store import GradientStore
from gradex.selection.choice import Choice, Selection, selection_file
from gradex.selection.from_flags import RuleArguments, TargetArguments
from gradex.selection.selectors import (
    GainInterval,
    Rules,
    Score,
    backward_select,
    forward_select,
    random_ensemble,
    random_select,
    select_all,
    surrogate_select,
    swap_select,
    top_select,
)
from gradex.selection.targets import score_of, together
from gradex.selection.worth import MIN_GAIN

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


@dataclass(frozen=True)
class Search:
    """What is searched, and where some methods find what they need besides."""

    score: Score
    rules: Rules
    store: GradientStore
    targets: dict[str, float]
    gain_interval: GainInterval | None = None

    @property
    def names(self) -> list[str]:
        return self.store.sources

    @property
    def allowed(self) -> list[str]:
        return self.rules.allowed(self.names)


def choose(search: Search, flags: SearchArguments) -> Choice:
    return METHODS[flags.method](search, flags)


def _forward(search: Search, flags: SearchArguments) -> Choice:
    return forward_select(
        search.score, search.names, rules=search.rules, min_gain=flags.min_gain,
        gain_interval=_doubts(search, flags), screen=flags.screen,
    )  # fmt: skip


def _backward(search: Search, flags: SearchArguments) -> Choice:
    return backward_select(
        search.score, search.names, rules=search.rules, min_gain=flags.min_gain,
        gain_interval=_doubts(search, flags),
    )  # fmt: skip


def _doubts(search: Search, flags: SearchArguments) -> GainInterval | None:
    """What stepwise searches are kept from by doubt."""
    if not flags.only_sure:
        return None
    if search.gain_interval is None:
        raise GradexError(
            f"--only_sure: --estimator {flags.estimator} tells no interval of a gain for these "
            "targets; leave it out, or say --estimator linear and leave out --robust"
        )
    return search.gain_interval


def _swap(search: Search, flags: SearchArguments) -> Choice:
    start = _forward(search, flags).selected if flags.start is None else _start(search, flags.start)
    return swap_select(search.score, search.names, start=start, rules=search.rules)


def _random_ensemble(search: Search, flags: SearchArguments) -> Choice:
    return random_ensemble(
        search.score, search.names, subsets=_subsets(search, flags), rules=search.rules,
        top_k=flags.top_k, threshold=flags.threshold,
    )  # fmt: skip


def _surrogate(search: Search, flags: SearchArguments) -> Choice:
    subsets = _subsets(search, flags)
    return surrogate_select(search.score, search.names, subsets=subsets, rules=search.rules)


def _topk(search: Search, flags: SearchArguments) -> Choice:
    return top_select(
        search.score, search.names, ranking=_ranking(search, flags), rules=search.rules,
        top_k=flags.top_k,
    )  # fmt: skip


def _all(search: Search, flags: SearchArguments) -> Choice:
    return select_all(search.score, search.names, rules=search.rules)


def _random(search: Search, flags: SearchArguments) -> Choice:
    count = flags.top_k or max(1, round(flags.subset_size * len(search.allowed)))
    return random_select(
        search.score, search.names, seed=flags.seed, top_k=count, rules=search.rules
    )


METHODS: dict[str, Callable[[Search, SearchArguments], Choice]] = {
    "forward": _forward,
    "backward": _backward,
    "swap": _swap,
    "random_ensemble": _random_ensemble,
    "surrogate": _surrogate,
    "topk": _topk,
    "all": _all,
    "random": _random,
}


def _ranking(search: Search, flags: SearchArguments) -> dict[str, float]:
    """The baseline's values of the single sources."""
    flags = flags.for_estimator(flags.rank_by or "cosine")
    names, targets = search.allowed, search.targets
    fitted = make_estimator(flags).fit(search.store, sources=names, targets=list(targets))
    combined = together(fitted, names, list(targets.values()), robust=flags.robust)
    values = score_of(fitted, combined)([frozenset([name]) for name in names])
    return dict(zip(names, values.tolist(), strict=True))


def _start(search: Search, words: list[str]) -> list[str]:
    """Names of sources, or those of a selection's file or folder."""
    if len(words) == 1 and words[0] not in search.names and Path(words[0]).exists():
        return Selection.read(selection_file(words[0])).selected
    return words


def _subsets(search: Search, flags: SearchArguments) -> list[Subset]:
    """Those of the file as far as they hold no source that is left out, or random ones."""
    if flags.subsets is None:
        return find_subsets(
            None, search.allowed, count=flags.num_subsets, size=flags.subset_size, seed=flags.seed,
            store=_label(search),
        )  # fmt: skip
    found = read_subsets(Path(flags.subsets), search.names)
    kept = [subset for subset in found if not subset & search.rules.never]
    if not kept:
        raise GradexError(
            f"{flags.subsets}: each of its {len(found)} subsets holds a source of --never; name "
            "another file, or none"
        )
    return kept


def _label(search: Search) -> str:
    """What the file of the random subsets is named after."""
    name = search.store.path.name
    return f"{name}-of{len(search.allowed)}" if search.rules.never else name
