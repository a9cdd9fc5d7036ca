"""The one exception for what the person at the keyboard can mend."""

from collections.abc import Iterable


class GradexError(Exception):
    """A mistake in the input: one sentence with what was found, what was expected, what to do."""


def unknown(kind: str, found: object, known: Iterable[str], where: str = "") -> GradexError:
    """The error every lookup table raises for a key it does not hold: it prints the keys."""
    prefix = f"{where}: " if where else ""
    return GradexError(f"{prefix}unknown {kind} '{found}'; known are: {', '.join(known)}")
