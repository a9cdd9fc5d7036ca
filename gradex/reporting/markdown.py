"""Writes texts that may hold anything into Markdown: as code, where nothing means anything."""

import re

from gradex.reporting.names import one_line
from gradex.reporting.quantities import MISSING


def code(text: object) -> str:
    """A code span, inside which Markdown and HTML mean nothing, whatever the text holds."""
    line = one_line(text).strip() or MISSING
    fence = "`" * (_longest_run(line) + 1)
    # A backtick at an end would join the fence.
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def fenced(text: str, language: str) -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table_row(cells: list[str]) -> str:
    # A bar ends a cell even inside a code span.
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
