"""The one exception for what the person at the keyboard can mend."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_NAMED = 40  # names of a lookup table that an error prints; of more, the nearest ones first


class GradexError(Exception):
    """A mistake in the input: one sentence with what was found, what was expected, what to do."""


def unknown(kind: str, found: object, known: Iterable[str], where: str = "") -> GradexError:
    """The error every lookup table raises for a key it does not hold: it prints the keys."""
    prefix = f"{where}: " if where else ""
    return GradexError(f"{prefix}unknown {kind} '{found}'; known are: {_named(found, list(known))}")


def _named(found: object, known: list[str]) -> str:
    if len(known) <= MOST_NAMED:
        return ", ".join(known)
    near = get_close_matches(str(found), known, n=5)
    named = list(dict.fromkeys([*near, *known]))[:MOST_NAMED]
    return f"{', '.join(named)}, and {len(known) - len(named)} more"


def first_line(error: BaseException) -> str:
    """What a library's error says in its first line; the error's name where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """The text with what a terminal would obey written out: names come from files of others."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1]
        for letter in text
    )
