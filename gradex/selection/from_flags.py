"""The targets and rules that a stage's flags mean."""

from dataclasses import dataclass
from typing import Literal

from gradex.config import option, require_fraction, require_positive
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.selection.rules import Rules

LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6  # beyond, one target is all that counts


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


def targets_of(arguments: TargetArguments, store: GradientStore) -> dict[str, float]:
    """The targets with what each counts, checked to be in the store."""
    names = [store.require_target(name) for name in arguments.target or [None]]
    return dict(zip(names, arguments.target_weights or [1.0] * len(names), strict=True))


def rules_of(arguments: RuleArguments, store: GradientStore) -> Rules:
    """The rules, checked to leave something to choose."""
    if not store.sources:
        raise GradexError(f"{store.path}: holds no source; run project again")
    rules = Rules(
        must=frozenset(arguments.must or ()),
        never=frozenset(arguments.never or ()),
        max_sources=arguments.max_sources,
        budget=arguments.budget,
        sizes={} if arguments.budget is None else sizes_of(store, unit=arguments.budget_unit),
        min_share=arguments.min_share,
        max_share=arguments.max_share,
    )
    rules.require_possible(store.sources)
    return rules


def sizes_of(store: GradientStore, *, unit: str = "rows") -> dict[str, int]:
    """Good rows, or the tokens that are learned in them, of every source."""
    tables = {name: store.table("train", name) for name in store.sources}
    if unit == "tokens":
        return {name: int(table["n_tokens"].sum()) for name, table in tables.items()}
    return {name: len(table) for name, table in tables.items()}
