"""What one adapter a group of sources gives beside one adapter on all of them, in the demo world.

    python benchmarks/ensemble_gain.py

The groups are made by hand, by what the skills are like, and drawn at random; in the development
world (seed 1), from the base, one seed. Two and a half minutes on one core.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from estimate_quality import Row, number, say
from quality_worlds import demo_world, entered, store_of

from gradex.finetune import Config, finetune
from gradex.gradients.store import GradientStore
from gradex.selection.choice import Choice, make_selection
from gradex.selection.groups import write_groups

STRINGS = "copy count first last reverse reverse_digits sort sort_digits".split()
NUMBERS = "add subtract multiply max min".split()
WRONG_STRINGS = "wrong_last wrong_reverse wrong_sort".split()
WRONG_NUMBERS = "wrong_add wrong_max".split()
BY_HAND = {
    "strings, numbers, wrong": [STRINGS, NUMBERS, WRONG_STRINGS + WRONG_NUMBERS],
    "strings, numbers, each with its wrong ones": [
        STRINGS + WRONG_STRINGS,
        NUMBERS + WRONG_NUMBERS,
    ],
    "strings, numbers, the wrong ones left out": [STRINGS, NUMBERS],
}
MODELS = ("base", "one", "one_longer", "best_member", "ensemble")
HEAD = [
    "base",
    "one adapter",
    "with m times the steps",
    "best member",
    "ensemble",
    "members with a weight",
]


def main() -> None:
    logging.disable(logging.WARNING)
    world = demo_world(1)
    with entered(world, Path("runs/ensemble_gain") / world.name):
        store = store_of(world, project_dim=100)
        groupings = BY_HAND | {"3 at random": _drawn(store.sources)}
        for count, (label, groups) in enumerate(groupings.items()):
            say(label, list(_rows(_measured(Path(f"groups-{count}"), groups, store))))


def _drawn(sources: Sequence[str]) -> list[list[str]]:
    order = np.random.default_rng(0).permutation(len(sources))
    return [sorted(sources[i] for i in part) for part in np.split(order, 3)]


def _measured(folder: Path, groups: Sequence[list[str]], store: GradientStore) -> list[dict]:
    shutil.rmtree(folder, ignore_errors=True)
    targets = dict.fromkeys(store.targets, 1.0)
    selections = [
        make_selection(Choice(sources, 0.0), store, method="group", targets=targets)
        for sources in groups
    ]
    write_groups(folder, selections)
    run = finetune(Config(ensemble=str(folder)))
    return json.loads((run / "results.json").read_text())["targets"]


def _rows(targets: Sequence[dict]) -> Iterator[Row]:
    """A line a target: test losses, and how many members have a weight."""
    yield "target", HEAD
    for target in targets:
        used = sum(weight > 0 for weight in target["weights"].values())
        yield target["target"], [*(number(target[m]["loss"]) for m in MODELS), str(used)]
    yield "mean", [*(number(fmean(t[m]["loss"] for t in targets)) for m in MODELS), ""]


if __name__ == "__main__":
    main()
