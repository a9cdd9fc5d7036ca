"""The noisy additions: sums that can be checked, noise that is only in the labels, same bytes."""

import re
from pathlib import Path

import pytest

from gradex.data.noisy_addition import (
    GROUP_ROWS,
    GROUPS,
    HELD_OUT,
    TARGET,
    addition_rows,
    worked_sum,
    write_noisy_addition,
)
from gradex.data.sources import load_sources

ROWS = addition_rows()
WORKED = re.compile(r"(\d'? ){3}\d{3,4}")


@pytest.mark.parametrize(
    ("left", "right", "worked"),
    [(100, 7, "7 0 1 107"), (224, 6, "0' 3 2 230"), (196, 5, "1' 0' 2 201"),
     (999, 1, "0' 0' 0' 1000")],
)  # fmt: skip
def test_steps_by_hand(left, right, worked):
    assert worked_sum(left, right) == worked


@pytest.mark.parametrize("left", range(100, 1000, 37))
@pytest.mark.parametrize("right", range(1, 10))
def test_the_digits_read_backwards_are_the_sum(left, right):
    *digits, total = worked_sum(left, right).split()
    read = "".join(digit[0] for digit in reversed(digits))
    assert int(total) == left + right
    assert int(read) + 1000 * digits[-1].endswith("'") == left + right


def sums(name: str) -> list[tuple[int, int]]:
    """Of every row, the true sum and the one it states."""
    return [
        (sum(map(int, row["prompt"].split("+"))), int(row["completion"].split()[-1]))
        for row in ROWS[name]
    ]


@pytest.mark.parametrize("name", ROWS)
def test_clean_rows_are_right_and_noisy_ones_never(name):
    right = [true == stated for true, stated in sums(name)]
    assert not any(right) if name.startswith("noisy") else all(right)


def test_noise_has_the_form_of_what_is_clean():
    completions = [row["completion"] for rows in ROWS.values() for row in rows]
    assert all(WORKED.fullmatch(text) for text in completions)


def test_groups_are_those_of_the_paper_and_share_no_prompt():
    sizes = {name: len(rows) for name, rows in ROWS.items()}
    groups = [f"{kind}_{i:02}" for kind in GROUPS for i in range(1, GROUPS[kind] + 1)]
    assert sizes == dict.fromkeys(groups, GROUP_ROWS) | HELD_OUT
    assert [count * GROUP_ROWS for count in GROUPS.values()] == [300, 200]
    prompts = [row["prompt"] for rows in ROWS.values() for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_a_seed_gives_the_same_rows_and_another_one_others():
    assert addition_rows(seed=1) == addition_rows(seed=1) != ROWS


def test_the_files_load_as_twenty_sources_and_one_target():
    write_noisy_addition(Path())
    sources = load_sources(["tasks/noisy_addition"])
    assert sources.targets == [TARGET] and sources.notes == ()
    assert sources.trainable == [name for name in ROWS if name not in HELD_OUT]
    assert {split: len(sources[TARGET].rows[split]) for split in HELD_OUT} == HELD_OUT


def test_the_files_have_the_same_bytes_every_time():
    for root in (Path("one"), Path("two")):
        write_noisy_addition(root)
    files = [path.relative_to("one") for path in Path("one").rglob("*.*")]
    assert len(files) == 22 + 21
    assert all((Path("one") / f).read_bytes() == (Path("two") / f).read_bytes() for f in files)
