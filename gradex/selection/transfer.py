"""What each source does to each target, and what two sources do to one another.

Both are means over contexts, which are random subsets C of the sources, the same for every source:

    effect(s)         = mean over C of  f(C + s) - f(C - s)
    interaction(s, u) = mean over C of  f(C + s + u) - f(C + s - u) - f(C - s + u) + f(C - s - u)

f is a score, lower is better: a source with an effect below zero helps, one above zero hurts the
target (negative transfer). An interaction below zero says that two sources help more together than
apart, one above zero that each makes the other superfluous, or worse.

Like a selector, this knows nothing of gradients: `score(subsets)` returns one row a subset with a
number a target. The intervals say how far an effect depends on the contexts; they know nothing of
the error of the score itself.

Negative transfer as in Li, Nguyen and Zhang, "Identification of Negative Transfers in Multitask
Learning Using Surrogate Models" (TMLR 2023), here by first differences instead of a fitted
surrogate; the interaction is the second difference of the index of Grabisch and Roubens, "An
axiomatic approach to the concept of interaction among players in cooperative games" (1999), with
equal weights for the contexts that are drawn.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

from gradex.data.subsets import Subset, sample_subsets
from gradex.errors import GradexError
from gradex.progress import progress
from gradex.selection.scores import TargetScore, evaluating_once

Pair = tuple[str, str]

SMALLEST_CONTEXT = 2  # one that is the source itself would leave nothing when it is taken out
RESAMPLES = 1000
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class Effects:
    """The mean change by each source, its interval, and the share of contexts where it hurts.

    A single context tells no interval: low and high are nan.
    """

    sources: list[str]
    mean: Float[np.ndarray, "source target"]
    low: Float[np.ndarray, "source target"]
    high: Float[np.ndarray, "source target"]
    hurts_share: Float[np.ndarray, "source target"]

    @property
    def uncertain(self) -> Bool[np.ndarray, "source target"]:
        """Where the interval holds zero, or is not known: help and harm cannot be told apart."""
        return ~((self.low > 0) | (self.high < 0))


def draw_contexts(sources: Sequence[str], *, count: int, size: float, seed: int) -> list[Subset]:
    """Distinct random subsets, `size` a share of the sources; fewer where there are no more.

    They do not depend on the order of the sources.
    """
    _require_two(sources)
    share = max(size, SMALLEST_CONTEXT / len(sources))
    return sample_subsets(sorted(sources), count, sizes=[share], seed=seed)


def effects(
    score: TargetScore, sources: Sequence[str], *, contexts: Sequence[Subset], seed: int = 0
) -> Effects:
    """The effect of adding each source on each target; `seed` is that of the bootstrap."""
    _require_two(sources)
    _require_large(contexts)
    score = evaluating_once(score)
    found = []
    for context in _with_bar("effects", contexts):
        pairs = [subset for s in sources for subset in (context | {s}, context - {s})]
        value = score(pairs).reshape(len(sources), 2, -1)
        found.append(value[:, 0] - value[:, 1])
    changes = np.stack(found)
    low, high = _interval(changes, seed)
    return Effects(list(sources), changes.mean(0), low, high, (changes > 0).mean(0))


def interactions(
    score: TargetScore, sources: Sequence[str], *, contexts: Sequence[Subset]
) -> Float[np.ndarray, "target source source"]:
    """The interaction of every two sources on each target: symmetric, the diagonal empty (nan).

    A context without a third source says nothing of two, as no subset is left without them; two
    that have no other context are nan.
    """
    _require_two(sources)
    score = evaluating_once(score)
    total: dict[Pair, Float[np.ndarray, " target"]] = {}
    times: Counter[Pair] = Counter()
    for context in _with_bar("interactions", contexts):
        pairs = [pair for pair in combinations(sources, 2) if context.difference(pair)]
        for pair, change in zip(pairs, _changes_together(score, context, pairs), strict=True):
            total[pair] = total.get(pair, 0) + change
            times[pair] += 1
    if not total:
        raise GradexError("an interaction is that of two sources beside a third; found only two")
    return _matrices({pair: change / times[pair] for pair, change in total.items()}, sources)


def _changes_together(
    score: TargetScore, context: Subset, pairs: Sequence[Pair]
) -> Float[np.ndarray, "pair target"]:
    """For each pair, what the second source does more where the first is there."""
    if not pairs:
        return np.zeros((0, 0))
    subsets = [
        subset
        for s, u in pairs
        for subset in (context | {s, u}, context - {u} | {s}, context - {s} | {u}, context - {s, u})
    ]
    both, first, second, neither = score(subsets).reshape(len(pairs), 4, -1).transpose(1, 0, 2)
    return both - first - second + neither


def _matrices(
    change: dict[Pair, Float[np.ndarray, " target"]], sources: Sequence[str]
) -> Float[np.ndarray, "target source source"]:
    place = {name: i for i, name in enumerate(sources)}
    targets = len(next(iter(change.values())))
    matrices = np.full((targets, len(sources), len(sources)), np.nan)
    for (s, u), value in change.items():
        matrices[:, place[s], place[u]] = matrices[:, place[u], place[s]] = value
    return matrices


def strongest(found: Effects, *, max_pairs: int) -> list[str]:
    """The sources with the strongest effects, as many as make at most so many pairs, in order.

    Targets differ in scale: an effect is taken as a share of the largest on its target.
    """
    count = int((1 + math.sqrt(1 + 8 * max_pairs)) / 2)  # the largest with count (count - 1) / 2
    size = np.abs(found.mean)
    share = (size / np.maximum(size.max(0), np.finfo(float).tiny)).max(1)
    kept = set(np.argsort(-share, kind="stable")[:count])
    return [name for i, name in enumerate(found.sources) if i in kept]


def _interval(
    changes: Float[np.ndarray, "context source target"], seed: int
) -> Float[np.ndarray, "bound source target"]:
    """5 and 95% of the mean over contexts, by the bootstrap: contexts drawn with replacement."""
    count, sources, targets = changes.shape
    if count == 1:
        return np.full((2, sources, targets), np.nan)
    rng = np.random.default_rng(seed)
    times: Int[np.ndarray, "resample context"] = rng.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    means = (times @ changes[:, source] / count for source in range(sources))
    return np.stack([np.quantile(mean, INTERVAL, axis=0) for mean in means], axis=1)


def _with_bar(name: str, contexts: Sequence[Subset]) -> Iterator[Subset]:
    with progress(name, len(contexts), unit="context") as bar:
        for context in contexts:
            yield context
            bar.update()


def _require_two(sources: Sequence[str]) -> None:
    if len(sources) < 2:
        raise GradexError(
            f"an effect is the difference that a source makes to others: found {len(sources)} "
            "source, expected at least 2"
        )


def _require_large(contexts: Sequence[Subset]) -> None:
    small = [context for context in contexts if len(context) < SMALLEST_CONTEXT]
    if small or not contexts:
        found = f"one of {len(small[0])}" if small else "none"
        raise GradexError(
            f"contexts: found {found}, expected subsets of at least {SMALLEST_CONTEXT} sources"
        )
