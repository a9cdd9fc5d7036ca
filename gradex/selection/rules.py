"""What a choice of sources has to keep to, whatever the search: asked for in one place.

Some rules are upper bounds (`never`, `max_sources`, `budget`, and `min_share`, as m sources cannot
all have more than 1/m), others lower bounds (`must`, and `max_share`, which needs 1/max_share
sources). A search that grows a subset may pass through ones that break lower bounds, one that
shrinks it through ones that break upper bounds, as long as an allowed subset lies ahead. Of all
subsets that may lie ahead, that with the fewest and smallest sources breaks an upper bound last, so
that looking at it is enough.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gradex.data.subsets import Subset
from gradex.errors import GradexError, unknown

ROUNDING = 1e-9  # 1 / (1 / 3) is three sources
LEAST_SHARE = 1e-9  # of more sources than there are; the inverse of a smaller one is infinite


@dataclass(frozen=True)
class Rules:
    """`sizes` are what the budget counts, rows or tokens, by source: needed where there is one.
    Shares are of the training mix."""

    must: Subset = frozenset()
    never: Subset = frozenset()
    max_sources: int | None = None
    budget: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    min_share: float | None = None
    max_share: float | None = None

    @property
    def fewest(self) -> int:
        """At least this many sources."""
        least = max(self.max_share or 1.0, LEAST_SHARE)
        by_share = math.ceil(1 / least - ROUNDING)
        return max(len(self.must), by_share)

    @property
    def most(self) -> int | float:
        """At most this many sources."""
        by_share: int | float = math.inf
        if self.min_share:
            by_share = math.floor(1 / max(self.min_share, LEAST_SHARE) + ROUNDING)
        return min(by_share, math.inf if self.max_sources is None else self.max_sources)

    def allows(self, subset: Iterable[str]) -> bool:
        """Whether this may be the choice."""
        subset = frozenset(subset)
        return self.must <= subset and len(subset) >= self.fewest and self._fits(subset)

    def allowed(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self.never]

    def additions(self, chosen: Iterable[str], names: Sequence[str]) -> list[str]:
        """Which of the names may be added: some allowed subset of the names holds the result."""
        chosen, pool = frozenset(chosen), self._smallest_first(names)
        return [
            name for name in names if name not in chosen and self._leads_on(chosen | {name}, pool)
        ]

    def removals(self, chosen: Iterable[str]) -> list[str]:
        """Which of the chosen may be taken out: what is left holds some allowed subset."""
        chosen = self.allowed(chosen)
        pool = self._smallest_first(chosen)
        if not (self.must.issubset(chosen) and self._leads_on((), pool)):
            return []
        least = self._completed((), pool)  # without any other source, this one is still there
        return [
            name
            for name in chosen
            if name not in least
            or (
                name not in self.must
                and self._leads_on((), [other for other in pool if other != name])
            )
        ]

    def in_order(self, ranked: Iterable[str]) -> list[str]:
        """The ranked names as far as they may be added one after another, after those of `must`."""
        names = self.allowed(ranked)
        chosen = [name for name in names if name in self.must]
        pool = self._smallest_first(names)
        for name in names:
            if name not in self.must and self._leads_on({*chosen, name}, pool):
                chosen.append(name)
        return chosen

    def size(self, subset: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in subset)

    def _fits(self, subset: Subset) -> bool:
        """Whether no upper bound is broken; then none is for any part of the subset."""
        if len(subset) > self.most or subset & self.never:
            return False
        return self.budget is None or self.size(subset) <= self.budget

    def _smallest_first(self, names: Iterable[str]) -> list[str]:
        return sorted(self.allowed(names), key=lambda name: self.sizes.get(name, 0))

    def _completed(self, subset: Iterable[str], pool: Sequence[str]) -> Subset:
        """The subset, `must`, and the smallest of the pool up to as many as are needed."""
        found = self.must.union(subset)
        for name in pool if len(found) < self.fewest else ():
            if len(found) == self.fewest:
                break
            found |= {name}
        return found

    def _leads_on(self, subset: Iterable[str], pool: Sequence[str]) -> bool:
        """Whether some allowed subset holds this one, and of the pool what else it needs."""
        found = self._completed(subset, pool)
        return len(found) >= self.fewest and self._fits(found)

    def require_possible(self, names: Sequence[str]) -> None:
        """Refuse rules that no subset of these names keeps to, naming the one that cannot be."""
        if not names:
            raise GradexError("found no source to choose from; project some")
        for flag, named in (("--must", self.must), ("--never", self.never)):
            for name in sorted(named.difference(names)):
                raise unknown("source", name, names, flag)
        for name in sorted(self.must & self.never):
            raise GradexError(f"--must and --never both name '{name}'; leave it out of one of them")
        if why := self._impossible(self.allowed(names)):
            raise GradexError(why)

    def _impossible(self, allowed: Sequence[str]) -> str:
        """Why no subset of these is allowed; nothing where one is."""
        if not allowed:
            return "--never: names every source; leave at least one to choose"
        if len(self.must) > self.most:
            return (
                f"--must: names {len(self.must)} sources, {self._names_most()} allows "
                f"at most {self.most}; name fewer, or allow more"
            )
        if self.fewest > self.most:
            return (
                f"--max_share: shares of at most {self.max_share:g} need {self.fewest} sources, "
                f"{self._names_most()} allows at most {self.most}; raise --max_share, or allow "
                "more"
            )
        if self.fewest > len(allowed):
            return (
                f"--max_share: shares of at most {self.max_share:g} need {self.fewest} sources, "
                f"found {len(allowed)} to choose from; raise --max_share"
            )
        return self._beyond_budget(allowed)

    def _names_most(self) -> str:
        by_number = self.max_sources is not None and self.most == self.max_sources
        return "their number (--max_sources, --top_k)" if by_number else "--min_share"

    def _beyond_budget(self, allowed: Sequence[str]) -> str:
        if self.budget is None:
            return ""
        pool = self._smallest_first(allowed)
        for what, least in (
            ("the sources of --must", self.must),
            (f"the smallest source, '{pool[0]}'", pool[:1]),
            (f"the smallest choice of {self.fewest} sources", self._completed((), pool)),
        ):
            if self.size(least) > self.budget:
                return (
                    f"--budget: found {self.budget}, {what} needs {self.size(least)}; raise the "
                    "budget"
                )
        return ""


NO_RULES = Rules()
