"""Arrays derived from a store's rows, kept in its `stats/` under a key of all they were made of.

A missing or damaged file is made again, and a store that cannot be written to is only slower.
"""

import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np

from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.progress import say_once
from gradex.records import replacing
from gradex.runs import HeldElsewhere, locked

Arrays = dict[str, np.ndarray]


def derived(
    store: GradientStore,
    made_of: tuple,
    make: Callable[[], Arrays],
    *,
    is_whole: Callable[[Arrays], bool],
) -> Arrays:
    """What `make` makes, from the store where it has been made of the same before."""
    file = store.path / "stats" / f"{sha256(repr(made_of).encode()).hexdigest()[:32]}.npz"
    found = _read(file)
    if found is None or not is_whole(found):
        found = make()
        _write(file, found)
    return found


def source_digests(store: GradientStore, name: str) -> list[dict]:
    """What tells the rows of a source from any others: the hashes of its shards' files."""
    return [receipt["files"] for receipt in store.receipts("train", name)]


def _read(file: Path) -> Arrays | None:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return dict(kept)
    except FileNotFoundError:
        return None
    except Exception as error:  # zip and array readers raise whatever they stumble over
        say_once(f"{file}: damaged ({error}), made again", level=logging.WARNING)
        return None


def _write(file: Path, arrays: Arrays) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        with locked(file.parent), replacing(file) as stream:
            np.savez(stream, **arrays)
    except HeldElsewhere:
        return  # another process writes its own, most likely the same
    except (OSError, GradexError) as error:
        say_once(f"statistics are not kept: {error}", level=logging.WARNING)
