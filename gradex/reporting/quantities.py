"""Writes measured quantities the way people read them, with an en dash where there is none."""

import math
import statistics
from collections.abc import Iterable

MISSING = "–"
GLUE = "\N{NO-BREAK SPACE}"  # keeps the parts of one quantity on one line


def is_finite(value: object) -> bool:
    """True for a real number; False for None, NaN, an infinity or anything else."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def finite(values: Iterable | None) -> list[float]:
    """The values that are real numbers, in their order."""
    return [float(value) for value in values or [] if is_finite(value)]


def number(value: object, digits: int = 3) -> str:
    """A number with a fixed count of decimals; very small and very large ones in powers of ten."""
    if not is_finite(value):
        return MISSING
    size = abs(value)
    extreme = size >= 1e5 or 0 < size < 0.5 * 10**-digits
    text = f"{value:.1e}" if extreme else f"{value:.{digits}f}"
    return text.replace("-", "−")


def count(value: object) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,.0f}" if is_finite(value) else MISSING


def percent(share: object) -> str:
    """A share as a percentage, with as many digits as tell small ones from nothing."""
    if not is_finite(share):
        return MISSING
    digits = 0 if share == 0 or abs(share) >= 0.01 else 1
    return f"{100 * share:.{digits}f}%"


def duration(seconds: object) -> str:
    """Seconds as a person would say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if not is_finite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f}{GLUE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{GLUE}min {rest}{GLUE}s"
    return f"{minutes // 60}{GLUE}h {minutes % 60}{GLUE}min"


def telling_digits(values: list[float], fewest: int = 2) -> int:
    """The fewest decimals that show different values as different; four at the most."""
    different = len(set(values))
    for digits in range(fewest, 4):
        if len({f"{value:.{digits}f}" for value in values}) == different:
            return digits
    return 4


def mean(values: Iterable | None) -> float | None:
    """The mean of the finite values, None when there is none."""
    numbers = finite(values)
    return statistics.fmean(numbers) if numbers else None


def spread(values: Iterable | None) -> float | None:
    """The standard deviation between seeds, None when fewer than two gave a number."""
    numbers = finite(values)
    return statistics.stdev(numbers) if len(numbers) > 1 else None


def mean_and_spread(values: Iterable | None, digits: int = 3) -> str:
    """The mean over seeds, with the standard deviation when there are several."""
    text = number(mean(values), digits)
    deviation = spread(values)
    return text if deviation is None else f"{text} ±{GLUE}{number(deviation, digits)}"
