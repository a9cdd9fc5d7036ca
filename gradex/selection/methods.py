"""The name of every method of choosing sources, and how its flags run it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradex.data.subsets import Subset, find_subsets, read_subsets
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.gradients.store import GradientStore
from gradex.selection.choice import Choice, Selection, selection_file
from gradex.selection.flags import SearchArguments
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
