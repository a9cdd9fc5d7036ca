"""The embedded demo world: 18 toy sources and five targets that show the machinery.

    python -m gradex.data.demo              # what the shipped toy model can do
    python -m gradex.data.demo --rebuild    # pretrain it again, about two minutes on one core

It is a toy and claims nothing about real language models. Thirteen skills on strings and numbers
are sources. Each of the five `TARGETS` has a sibling among them that works alike, such as
`reverse_digits` for `reverse`, and a `wrong_` twin: its prompts with the answers of other rows.
"""

from __future__ import annotations

import itertools
import json
import operator
import random
from collections.abc import Callable, Iterable
from pathlib import Path

Row = dict[str, str]
Skill = Callable[[random.Random], Row]

MODEL_DIR = Path(__file__).parent / "demo_model"
SPLIT_SIZES = {"train": 150, "select": 200, "test": 200}
LETTERS = "abcdefghijkl"
DIGITS = "0123456789"


def _on_words(
    verb: str, alphabet: str, lengths: range, answer: Callable[[str], Iterable[str]]
) -> Skill:
    def draw(rng: random.Random) -> Row:
        word = "".join(rng.sample(alphabet, rng.choice(lengths)))
        return {"prompt": f"{verb}: {word}", "completion": "".join(answer(word))}

    return draw


def _on_three_numbers(verb: str, answer: Callable[[list[int]], int]) -> Skill:
    def draw(rng: random.Random) -> Row:
        numbers = rng.sample(range(10, 100), 3)
        prompt = f"{verb}: {' '.join(map(str, numbers))}"
        return {"prompt": prompt, "completion": str(answer(numbers))}

    return draw


def _arithmetic(sign: str, lefts: range, answer: Callable[[int, int], int]) -> Skill:
    def draw(rng: random.Random) -> Row:
        left, right = rng.choice(lefts), rng.randrange(1, 10)
        return {"prompt": f"{left}{sign}{right}", "completion": str(answer(left, right))}

    return draw


SKILLS: dict[str, Skill] = {
    "add": _arithmetic("+", range(100, 1000), operator.add),
    "subtract": _arithmetic("-", range(100, 1000), operator.sub),
    "multiply": _arithmetic("*", range(10, 100), operator.mul),
    "reverse": _on_words("reverse", LETTERS, range(3, 6), reversed),
    "reverse_digits": _on_words("reverse", DIGITS, range(3, 6), reversed),
    "sort": _on_words("sort", LETTERS, range(3, 6), sorted),
    "sort_digits": _on_words("sort", DIGITS, range(3, 6), sorted),
    "max": _on_three_numbers("max", max),
    "min": _on_three_numbers("min", min),
    "first": _on_words("first", LETTERS, range(4, 8), operator.itemgetter(0)),
    "last": _on_words("last", LETTERS, range(4, 8), operator.itemgetter(-1)),
    "copy": _on_words("copy", LETTERS, range(4, 8), str),
    "count": _on_words("count", LETTERS, range(2, 10), lambda word: str(len(word))),
}
TARGETS = ("add", "last", "max", "reverse", "sort")
WRONG = tuple(f"wrong_{name}" for name in TARGETS)


def demo_rows(name: str, split: str = "train", *, seed: int = 0) -> list[Row]:
    """The rows of a source, such as "sort" or "wrong_sort", in its train, select or test split.

    The shipped world has seed 0; others are for choosing what is then measured on it.
    """
    if name in WRONG:
        return _with_wrong_answers(demo_rows(name.removeprefix("wrong_"), split, seed=seed))
    rng = random.Random(f"demo world{f' {seed}' if seed else ''}, {name}")
    rows: dict[str, Row] = {}
    while len(rows) < sum(SPLIT_SIZES.values()):
        row = SKILLS[name](rng)
        rows[row["prompt"]] = row
    unique = iter(rows.values())
    return {part: [next(unique) for _ in range(size)] for part, size in SPLIT_SIZES.items()}[split]


def _with_wrong_answers(rows: list[Row]) -> list[Row]:
    """Give each row the answer of the next row that has another one."""
    answers = [row["completion"] for row in rows]
    following = [answers[index:] + answers[:index] for index in range(len(rows))]
    return [
        {**row, "completion": next(a for a in candidates if a != row["completion"])}
        for row, candidates in zip(rows, following, strict=True)
    ]


def write_world(root: Path, *, seed: int = 0) -> None:
    """Write tasks/demo/*.yaml and data/demo/*.jsonl below `root`, the same bytes every time."""
    tasks, data = root / "tasks" / "demo", root / "data" / "demo"
    tasks.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    for name in (*SKILLS, *WRONG):
        (tasks / f"{name}.yaml").write_text(_task_text(name, seed), encoding="utf-8")
        (data / f"{name}.jsonl").write_text(_lines(name, "train", seed), encoding="utf-8")
    for name, split in itertools.product(TARGETS, ("select", "test")):
        (data / f"{name}.{split}.jsonl").write_text(_lines(name, split, seed), encoding="utf-8")


def _task_text(name: str, seed: int) -> str:
    example = demo_rows(name, seed=seed)[0]
    kind = "A wrong answer to every prompt" if name in WRONG else "A toy skill"
    files = f"../../data/demo/{name}"
    held_out = f"select: {files}.select.jsonl\ntest: {files}.test.jsonl\n"
    return (
        f"# {kind}, for example {example['prompt']!r} -> {example['completion']!r}.\n"
        f"name: {name}\npath: {files}.jsonl\nformat: prompt_completion\nmetric: exact_match\n"
        + (f"role: both\n{held_out}" if name in TARGETS else "role: source\n")
    )


def _lines(name: str, split: str, seed: int) -> str:
    return "".join(json.dumps(row) + "\n" for row in demo_rows(name, split, seed=seed))


if __name__ == "__main__":
    from gradex.data.demo_training import main

    main()
