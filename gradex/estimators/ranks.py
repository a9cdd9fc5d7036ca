"""How sure the ranks of uncalibrated estimates are: a bootstrap over target rows and sketch dims.

A first-order change is a mean over the target's rows of a sum over the sketch's dimensions. Both
are resampled with replacement, many times, and all subsets are ranked anew each time. Each
subset's displacement is held fixed, and with it the source rows.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from gradex.data.subsets import Subset
from gradex.estimators.protocol import Displacing, members
from gradex.estimators.regression import target_rows
from gradex.gradients.store import GradientStore

DRAWS = 200
ENDS = (0.05, 0.95)

Ranks = Float[np.ndarray, "subset target"]


def rank_intervals(
    fitted: Displacing,
    store: GradientStore,
    subsets: Sequence[Subset],
    targets: Sequence[str],
    *,
    split: str = "select",
    seed: int = 0,
) -> tuple[Ranks, Ranks]:
    """Lower and upper ends of 90% intervals of the ranks; 1 is the lowest estimate."""
    z = fitted.displacements(members(subsets, store.sources))
    ends = [
        _ends(
            z,
            target_rows(store.target(target, split), "soft"),
            np.random.default_rng([seed, column]),
        )
        for column, target in enumerate(targets)
    ]
    low, high = zip(*ends, strict=True)
    return np.stack(low, axis=1), np.stack(high, axis=1)


def _ends(
    z: Float[np.ndarray, "subset dim"],
    rows: Float[np.ndarray, "row dim"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " subset"], Float[np.ndarray, " subset"]]:
    slopes = np.stack([_resampled(rows, rng) for _ in range(DRAWS)])
    ranks = rankdata(z @ slopes.T, axis=0)
    low, high = np.quantile(ranks, ENDS, axis=1)
    return low, high


def _resampled(
    rows: Float[np.ndarray, "row dim"], rng: np.random.Generator
) -> Float[np.ndarray, " dim"]:
    """The mean over rows drawn anew, each dimension counted as often as it was drawn."""
    return (_draw(len(rows), rng) @ rows) / len(rows) * _draw(rows.shape[1], rng)


def _draw(size: int, rng: np.random.Generator) -> Int[np.ndarray, " size"]:
    """How often each of `size` things comes up in as many draws."""
    return np.bincount(rng.integers(size, size=size), minlength=size)
