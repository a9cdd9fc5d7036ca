"""Progress bars: live on a terminal, a line now and then in a log file."""

import sys

from tqdm import tqdm


def progress(name: str, total: int, *, unit: str, initial: int = 0, show: bool = True) -> tqdm:
    """A bar on stderr; one inside another goes away when it is done."""
    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        unit=unit,
        leave=None,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        disable=not show,
        dynamic_ncols=True,
    )
