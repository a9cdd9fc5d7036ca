"""The random ensemble: sources ranked by the scores of the random subsets that hold them.

As in "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation Approach" (EMNLP
2024 Findings, arXiv 2409.19458), a source is worth the mean score of the subsets that hold it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset, membership
from gradex.errors import GradexError
from gradex.selection.choice import Choice
from gradex.selection.ranked import at_most
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score
from gradex.selection.trace import Step, prefix_steps, stop

LEVEL = 1.645  # standard errors to each side of a 90% interval


@dataclass(frozen=True)
class Tally:
    """Of every source: in how many subsets it is, their mean score and its standard error (nan for
    a single one), and by how much that differs from the mean without the source."""

    names: list[str]
    count: Float[np.ndarray, " source"]
    mean: Float[np.ndarray, " source"]
    error: Float[np.ndarray, " source"]
    effect: Float[np.ndarray, " source"]

    def recorded(self, name: str) -> Step:
        at = self.names.index(name)
        mean, reach = float(self.mean[at]), float(LEVEL * self.error[at])
        ends = [mean - reach, mean + reach] if np.isfinite(reach) else None
        return {
            "count": int(self.count[at]), "mean": mean, "interval": ends,
            "effect": float(self.effect[at]),
        }  # fmt: skip


def random_ensemble(
    score: Score,
    names: Sequence[str],
    *,
    subsets: Sequence[Subset],
    rules: Rules = NO_RULES,
    top_k: int | None = None,
    threshold: float | None = None,
) -> Choice:
    """Go down the ranking by effect: to the prefix that scores best, to `top_k`, or to the last
    source whose effect is at most `threshold`.

    `scores` are the effects: below zero, the subsets that hold the source score lower than the
    others. The trace holds every prefix of the ranking, and what is known of its last source.
    """
    rules = at_most(rules, top_k)
    rules.require_possible(names)
    names = rules.allowed(names)
    tally = tally_of(score, names, subsets)
    effects = dict(zip(names, tally.effect.tolist(), strict=True))
    order = rules.in_order(sorted(names, key=effects.__getitem__))
    trace = [step | tally.recorded(step["added"]) for step in prefix_steps(score, order)]
    if threshold is not None:
        size, why = _down_to(order, effects, threshold, rules)
    elif top_k is not None:
        size, why = len(order), f"the first {len(order)} of the ranking"
    else:
        size, why = _best_prefix(trace, rules)
    stop(trace, why)
    return Choice(order[:size], trace[size - 1]["value"], effects, trace)


def tally_of(score: Score, names: Sequence[str], subsets: Sequence[Subset]) -> Tally:
    """The scores of the subsets by the source that they hold."""
    member = membership(subsets, names)
    require_seen(names, member.sum(0), len(subsets))
    values = score(subsets)
    counts, others = member.sum(0), len(subsets) - member.sum(0)
    mean = member.T @ values / counts
    spread = (member * (values[:, None] - mean) ** 2).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(spread / (counts - 1) / counts)
    without = (1 - member).T @ values / np.maximum(others, 1)
    return Tally(list(names), counts, mean, error, np.where(others > 0, mean - without, 0))


def require_seen(names: Sequence[str], counts: Float[np.ndarray, " source"], total: int) -> None:
    """Refuse subsets that say nothing of a source."""
    unseen = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if unseen:
        raise GradexError(
            f"{unseen[0]} is in none of the {total} subsets, so that its effect is unknown; sample "
            "more of them (--num_subsets), larger ones (--subset_size), or name others (--subsets)"
        )


def _best_prefix(trace: Sequence[Step], rules: Rules) -> tuple[int, str]:
    added = [step["added"] for step in trace]
    sizes = [size for size in range(1, len(trace) + 1) if rules.allows(added[:size])]
    best = min(sizes, key=lambda size: trace[size - 1]["value"])
    return best, f"the first {best} of the ranking score best"


def _down_to(
    order: Sequence[str], effects: dict[str, float], threshold: float, rules: Rules
) -> tuple[int, str]:
    size = sum(effects[name] <= threshold or name in rules.must for name in order)
    if not rules.allows(order[:size]):
        raise GradexError(
            f"--threshold: {size} sources have an effect of at most {threshold:g}, at least "
            f"{max(rules.fewest, 1)} are needed; the lowest effect is {min(effects.values()):.4g}"
        )
    return size, f"the effects of the first {size} are at most {threshold:g}"
