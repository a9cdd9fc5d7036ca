"""Subsets of sources: sampled, written to and read from `sampled_tasks/`, one a line.

A line holds the source names separated by spaces; names are percent-encoded, as in folders.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from gradex.errors import GradexError, unknown

Subset = frozenset[str]

MIXED_SIZES = (0.5, 0.25, 0.75)  # shares of the sources, of random subsets that are tried for real
SAMPLED_TASKS = Path("sampled_tasks")
MAX_ENCODED_NAME = 200  # a folder's name may have 255 bytes on the usual file systems
FORMULA = ("=", "+", "-", "@")  # how spreadsheets know one


def encode_name(name: str) -> str:
    """A source name as one word that is also a safe folder name."""
    return quote(name, safe="")


def decode_name(word: str) -> str:
    return unquote(word)


def check_name(name: str, where: str) -> str:
    """Refuse names that are empty or unprintable, that would leave a folder named after them, or
    that a program which reads the tables might run."""
    parts = name.replace("\\", "/").split("/")
    if not name.strip() or not name.isprintable():
        raise GradexError(f"{where}: found the source name {name!r}, expected printable text")
    if name.startswith(("/", "\\", "~")) or "." in parts or ".." in parts:
        raise GradexError(
            f"{where}: the source name '{name}' would leave the store; use a name that is not an "
            "absolute path and has no `.` or `..` part"
        )
    if name.startswith(FORMULA):
        raise GradexError(
            f"{where}: the source name '{name[:40]}' would be a formula in a spreadsheet's table, "
            "or a flag on the command line; use a name with another first character"
        )
    if len(encode_name(name)) > MAX_ENCODED_NAME:
        raise GradexError(f"{where}: the source name '{name[:40]}...' is too long for a folder")
    return name


def format_subset(subset: Subset, order: Sequence[str]) -> str:
    """The subset as a line, its names in the order of the sources."""
    return " ".join(encode_name(name) for name in order if name in subset)


def parse_subset(line: str, known: Iterable[str], where: str) -> Subset:
    names = [decode_name(word) for word in line.split()]
    known = dict.fromkeys(known)
    for name in names:
        if name not in known:
            raise unknown("source", name, known, where)
    return frozenset(names)


def read_subsets(path: Path, known: Iterable[str]) -> list[Subset]:
    """The subsets of a file in its order; lines that start with # are comments."""
    if not path.is_file():
        raise GradexError(f"{path}: no such file; expected one subset of source names a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise GradexError(f"{path}: not UTF-8 text (byte {error.start})") from None
    known = list(known)
    subsets = [
        parse_subset(line, known, f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not subsets:
        raise GradexError(f"{path}: found no subset, expected one of source names a line")
    return subsets


def write_subsets(path: Path, subsets: Iterable[Subset], order: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [format_subset(subset, order) for subset in subsets]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sample_subsets(
    names: Sequence[str],
    count: int,
    *,
    sizes: Sequence[float],
    seed: int,
    exclude: Iterable[Subset] = (),
) -> list[Subset]:
    """Distinct random subsets, their sizes going round the given fractions of the sources.

    Fewer are returned where there are no more of these sizes.
    """
    rng = np.random.default_rng(seed)
    seen = set(exclude)
    drawn: list[Subset] = []
    taken = Counter(len(subset) for subset in seen if subset.issubset(names))
    counts = [min(len(names), max(1, round(fraction * len(names)))) for fraction in sizes]
    room = {k: math.comb(len(names), k) - taken[k] for k in set(counts)}
    turn = 0
    while len(drawn) < count and any(room[k] > 0 for k in counts):
        size = counts[turn % len(counts)]
        turn += 1
        if room[size] <= 0:
            continue
        subset = _unseen(names, size, rng, seen)
        seen.add(subset)
        drawn.append(subset)
        room[size] -= 1
    return drawn


def _unseen(names: Sequence[str], size: int, rng: np.random.Generator, seen: set) -> Subset:
    while True:
        subset = frozenset(names[i] for i in rng.choice(len(names), size, replace=False))
        if subset not in seen:
            return subset


def find_subsets(
    file: str | None, names: Sequence[str], *, count: int, size: float, seed: int, store: str
) -> list[Subset]:
    """The subsets of a file, or random ones, which are then kept in `sampled_tasks/`."""
    if file:
        return read_subsets(Path(file), names)
    drawn = sample_subsets(names, count, sizes=[size], seed=seed)
    kept = SAMPLED_TASKS / f"{store}-n{len(drawn)}-size{size:g}-seed{seed}.txt"
    write_subsets(kept, drawn, names)
    return drawn


def membership(subsets: Sequence[Subset], names: Sequence[str]) -> np.ndarray:
    """0/1 matrix: subset by source."""
    place = {name: i for i, name in enumerate(names)}
    member = np.zeros((len(subsets), len(names)))
    for row, subset in zip(member, subsets, strict=True):
        row[[place[name] for name in subset if name in place]] = 1
    return member
