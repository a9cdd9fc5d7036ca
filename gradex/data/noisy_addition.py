"""Additions with their steps, some groups of them with the steps and the sum of other numbers.

The example by which the paper shows that estimates tell noise: 300 clean and 200 noisy additions in
groups of 25, each group a source. The numbers have the digits that the demo's base model half
masters, three and one: it can work a sum out but mostly slips. It has never seen steps.
"""

import random
from pathlib import Path

from gradex.data.demo import Row
from gradex.data.writing import write_records

TARGET = "addition"
GROUPS = {"clean": 12, "noisy": 8}
GROUP_ROWS = 25
HELD_OUT = {"select": 200, "test": 200}
Pair = tuple[int, int]


def worked_sum(left: int, right: int) -> str:
    """The digits of the sum from the right, ' where one is carried, then the sum: 224 and 6 are
    0' 3 2 230."""
    digits, carried = [], 0
    for place in range(len(str(left))):
        digit_sum = left // 10**place % 10 + right // 10**place % 10 + carried
        carried = digit_sum // 10
        digits.append(f"{digit_sum % 10}'" if carried else str(digit_sum))
    return " ".join([*digits, str(left + right)])


def addition_rows(*, seed: int = 0) -> dict[str, list[Row]]:
    """The rows of clean_01 to clean_12, of noisy_01 to noisy_08, and the target's select and test
    rows, which are clean. No prompt stands twice."""
    rng = random.Random(f"noisy additions {seed}")
    names = [f"{kind}_{i:02}" for kind, count in GROUPS.items() for i in range(1, count + 1)]
    sizes = dict.fromkeys(names, GROUP_ROWS) | HELD_OUT
    pairs = iter(_distinct_pairs(rng, sum(sizes.values())))
    return {
        name: [_row(next(pairs), rng, noisy=name.startswith("noisy")) for _ in range(size)]
        for name, size in sizes.items()
    }


def _distinct_pairs(rng: random.Random, count: int) -> list[Pair]:
    drawn: dict[Pair, None] = {}
    while len(drawn) < count:
        drawn[_pair(rng)] = None
    return list(drawn)


def _pair(rng: random.Random) -> Pair:
    return rng.randrange(100, 1000), rng.randrange(1, 10)


def _row(pair: Pair, rng: random.Random, *, noisy: bool) -> Row:
    worked = _another(pair, rng) if noisy else pair
    return {"prompt": f"{pair[0]}+{pair[1]}", "completion": worked_sum(*worked)}


def _another(pair: Pair, rng: random.Random) -> Pair:
    """Numbers with another sum: what is random is the label as a whole, not its form."""
    other = _pair(rng)
    while sum(other) == sum(pair):
        other = _pair(rng)
    return other


def write_noisy_addition(root: Path, *, seed: int = 0) -> None:
    """Write tasks/noisy_addition/*.yaml and data/noisy_addition/*.jsonl below `root`, the same
    bytes every time."""
    tasks, data = root / "tasks" / "noisy_addition", root / "data" / "noisy_addition"
    tasks.mkdir(parents=True, exist_ok=True)
    rows = addition_rows(seed=seed)
    for name in rows:
        write_records(data / f"{name}.jsonl", rows[name])
    for name in rows.keys() - HELD_OUT.keys():
        _write_task(tasks, name, "role: source", path=name)
    files = "\n".join(f"{split}: {_place(split)}" for split in HELD_OUT)
    _write_task(tasks, TARGET, f"role: target\n{files}", path="select")


def _write_task(tasks: Path, name: str, role: str, *, path: str) -> None:
    text = f"name: {name}\npath: {_place(path)}\nformat: prompt_completion\nmetric: exact_match\n"
    (tasks / f"{name}.yaml").write_text(f"{text}{role}\n", encoding="utf-8")


def _place(name: str) -> str:
    return f"../../data/noisy_addition/{name}.jsonl"
