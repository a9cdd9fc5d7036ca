"""The targets and rules that a stage's flags mean."""

from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.selection.flags import RuleArguments, TargetArguments
from gradex.selection.rules import Rules


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
