"""Shares of the training, one a source: numbers of at least 0 that sum to 1."""

import math
from collections.abc import Collection, Mapping

from gradex.errors import GradexError

Shares = dict[str, float]
TOLERANCE = 1e-6


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
