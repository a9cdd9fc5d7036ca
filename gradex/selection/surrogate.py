"""The surrogate: a ridge regression of the score on memberships, and the subset that it likes best.

    s(S) = c + sum_i w_i [i in S] + sum_{i<j} w_ij [i in S][j in S]

as in Ilyas et al., "Datamodels: Predicting Predictions from Training Data" (ICML 2022, arXiv
2202.00622), here of a cheap score and with pairs. Both are kernels of memberships, so that pairs
need no columns; the kernel and the ridge are those that predict left-out subsets best.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset, membership
from gradex.errors import GradexError
from gradex.estimators.kernel_ridge import STRENGTHS, KernelRidge, fit, linear, solve
from gradex.selection.choice import Choice
from gradex.selection.forward import forward_select
from gradex.selection.random_ensemble import require_seen
from gradex.selection.rules import NO_RULES, Rules
from gradex.selection.scores import Score
from gradex.selection.swap import swap_select
from gradex.selection.trace import Step, stop

FEWEST = 4


def pairwise(a: Float[np.ndarray, "a x"], b: Float[np.ndarray, "b x"]) -> Float[np.ndarray, "a b"]:
    """The share of all sources, and pairs of them, that two 0/1 rows both have."""
    both = a @ b.T
    return both * (both + 1) / (a.shape[1] * (a.shape[1] + 1))


def surrogate_select(
    score: Score, names: Sequence[str], *, subsets: Sequence[Subset], rules: Rules = NO_RULES
) -> Choice:
    """Fit the surrogate to the scores of the subsets, search it, and score what it finds truly.

    `scores` and the steps of the trace are those of the search on the surrogate; the last step has
    the true value, and which share of the variance among subsets that are left out is told.
    """
    rules.require_possible(names)
    known = rules.allowed(names)
    fitted, facts = _fit(score, known, subsets)

    def surrogate(subsets: Sequence[Subset]) -> Float[np.ndarray, " subset"]:
        return fitted.predict(membership(subsets, known))[:, 0]

    start = forward_select(surrogate, names, rules=rules).selected
    found = swap_select(surrogate, names, start=start, rules=rules)
    value = float(score([frozenset(found.selected)])[0])
    last = {"step": len(found.trace), "value": value, "surrogate": found.value, **facts}
    trace = [*map(_without_stop, found.trace), last]
    stop(trace, "the choice of the surrogate, scored truly")
    return Choice(found.selected, value, found.scores, trace)


def _without_stop(step: Step) -> Step:
    return {key: value for key, value in step.items() if key != "stop"}


def _fit(score: Score, names: Sequence[str], subsets: Sequence[Subset]) -> tuple[KernelRidge, Step]:
    subsets = list(dict.fromkeys(subsets))
    if len(subsets) < FEWEST:
        raise GradexError(
            f"found {len(subsets)} distinct subsets, a surrogate needs at least {FEWEST}; sample "
            "more of them (--num_subsets), or choose with another --method"
        )
    member = membership(subsets, names)
    require_seen(names, member.sum(0), len(subsets))
    values = np.asarray(score(subsets))[:, None]
    fitted = fit(member, values, kernels=[linear, pairwise], strengths=STRENGTHS)
    _, missed = solve(fitted.kernels[0](member, member), values, fitted.strengths)
    spread = ((values - values.mean()) ** 2).sum()
    told = float(1 - (missed**2).sum() / spread) if spread > 0 else None
    return fitted, {"kernel": fitted.kernels[0].__name__, "left_out_r2": told}
