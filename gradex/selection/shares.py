"""Shares of a whole, one a source: made of sizes within bounds, made whole numbers, and checked.

Bounds cut off what goes to the others (water-filling):

    share_i = clip(c * size_i, low, high)     with the one c for which the shares sum to 1

The sum grows with c piece by piece in straight lines, which bend where a share meets a bound.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from gradex.errors import GradexError

Shares = dict[str, float]
TOLERANCE = 1e-6  # by which shares that were written to a file may miss 1
ROUNDING = 1e-9


def clipped_shares(
    sizes: Mapping[str, int], *, low: float | None = None, high: float | None = None
) -> Shares:
    """Shares that sum to 1, in proportion to the sizes as far as the bounds let them."""
    low, high = 0.0 if low is None else low, 1.0 if high is None else high
    _require_possible(len(sizes), low, high)
    size = np.array(list(sizes.values()), dtype=np.float64)
    shares = np.clip(_level(size, low, high) * size, low, high)
    return dict(zip(sizes, (shares / shares.sum()).tolist(), strict=True))


def _level(size: Float[np.ndarray, " source"], low: float, high: float) -> float:
    """c of the module's equation: the piece on which the sum passes 1, then a straight line."""
    bends = np.unique(np.concatenate([low / size, high / size]))
    sums = np.clip(bends[:, None] * size, low, high).sum(1)
    return float(np.interp(1.0, sums, bends))


def _require_possible(count: int, low: float, high: float) -> None:
    if low > high:
        raise GradexError(f"--min_share: found {low:g}, above --max_share {high:g}")
    if count * low > 1 + ROUNDING:
        raise GradexError(f"--min_share: {count} shares of at least {low:g} are more than all")
    if count * high < 1 - ROUNDING:
        raise GradexError(f"--max_share: {count} shares of at most {high:g} are less than all")


def apportion(sizes: Sequence[float | int], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each in proportion to its size but for less than one: the
    largest remainders are rounded up."""
    size = np.asarray(sizes, dtype=np.float64)
    exact = size * total / size.sum()
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts.tolist()


def require_shares(shares: Mapping[str, object], names: Collection[str], *, where: str) -> None:
    """Refuse what does not give each of the names its share."""
    for name in names:
        if name not in shares:
            raise GradexError(f"{where}: found no share of '{name}'; give each source one, or none")
        if not _is_share(shares[name]):
            raise GradexError(
                f"{where}: the share of '{name}' is {shares[name]!r:.40}, expected a number of at "
                "least 0"
            )
    total = math.fsum(shares[name] for name in names)
    if abs(total - 1) > TOLERANCE:
        raise GradexError(f"{where}: the shares sum to {total:.8g}, expected 1")


def _is_share(value: object) -> bool:
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf
