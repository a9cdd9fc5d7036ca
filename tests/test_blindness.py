"""What chooses, weighs or groups sources goes by select rows: test rows move nothing."""

from pathlib import Path

import numpy as np
import pytest
from planted import store_of

from gradex.gradients.shards import Faults, write_shard
from gradex.gradients.store import GradientStore
from gradex.group import Config as GroupConfig
from gradex.group import group
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources
from gradex.weigh import Config as WeighConfig
from gradex.weigh import weigh

DIM, ROWS = 8, 12
SOURCES, TARGETS = list("abcdef"), ["s", "t"]
SEARCHES = ["forward", "backward", "swap", "random_ensemble", "surrogate", "all", "random"]


def store(folder: Path, *, test_seed: int) -> GradientStore:
    """Every second row of a target is one of its test rows, drawn from the seed."""
    rng = np.random.default_rng(0)
    sources = {name: rng.normal(size=(ROWS, DIM)) + rng.normal(size=DIM) for name in SOURCES}
    targets = {name: rng.normal(size=(ROWS, DIM)) + rng.normal(size=DIM) for name in TARGETS}
    made = store_of(folder, sources, targets, shard_rows=ROWS)
    other = np.random.default_rng(test_seed)
    for name in TARGETS:
        shard = made.shards("target", name)[0]
        table, rows = np.load(shard.file(".rows.npy")), np.load(shard.file(".npy"))
        table["split"][::2] = "test"
        rows[::2] = 10 * other.normal(size=rows[::2].shape)
        table["grad_norm"][::2] = np.linalg.norm(rows[::2], axis=1)
        table["loss"][::2] = other.exponential(size=len(rows[::2]))
        write_shard(shard, {"": (rows, table)}, faults=Faults({}, {}), versions={})
    made.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    return GradientStore.open(folder)


def select(**flags):
    return lambda: select_sources(SelectConfig(store="store", target=TARGETS, **flags)).parent


def grouped():
    return group(GroupConfig(store="store", sources=True, num_subsets=40))


STAGES = {
    **{method: select(method=method) for method in SEARCHES},
    **{f"topk {by}": select(method="topk", top_k=2, rank_by=by) for by in ("cosine", "influence")},
    "robust": select(robust=True),
    "rows": select(level="rows", top=0.3),
    "match": lambda: weigh(WeighConfig(store="store", target=TARGETS, bootstrap=5)),
    "balance": lambda: weigh(WeighConfig(store="store", target=TARGETS, method="balance")),
    "groups": grouped,
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_other_test_rows_leave_every_byte_as_it_was(stage, tmp_path, monkeypatch):
    written = []
    for seed in (1, 2):
        place = tmp_path / str(seed)
        place.mkdir()
        monkeypatch.chdir(place)
        store(Path("store"), test_seed=seed)
        run = stage()
        files = sorted(file for file in run.rglob("*") if file.suffix in (".json", ".csv"))
        written.append({str(file.relative_to(run)): file.read_bytes() for file in files})
    first, second = written
    assert first == second and any(name.endswith("selection.json") for name in first)
