"""What a person sees while a stage works: bars, live on a terminal, and things said once."""

import logging
import sys
from functools import cache

from tqdm import tqdm

log = logging.getLogger(__name__)


def progress(name: str, total: int, *, unit: str, initial: int = 0, show: bool = True) -> tqdm:
    """A bar on stderr for what takes longer than a second; an inner one goes when it is done."""
    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit == "token",  # they come in thousands
        leave=None,
        delay=1,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        disable=not show or total == 0 or (_is_inner() and not sys.stderr.isatty()),
        dynamic_ncols=True,
    )


def _is_inner() -> bool:
    """Whether another bar is running: in a log file, two that take turns cannot be read."""
    return len(getattr(tqdm, "_instances", ())) > 0


@cache
def say_once(text: str, *, level: int = logging.INFO) -> None:
    """Log a line unless this process has said it before: stages load the same data and model."""
    log.log(level, text)
