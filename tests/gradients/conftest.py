"""A store on disk with given gradients, without a model."""

import numpy as np
import pytest

from gradex.gradients.shards import ROW_TYPE, Faults, quantise, write_shard
from gradex.gradients.store import GradientStore

SPACE = {
    "model": "m",
    "project_dim": 5,
    "differentiate": "loss",
    "dtype": "float32",
    "precondition": "none",
}


def _table(count: int, *, split: str = "train") -> np.ndarray:
    rows = np.zeros(count, ROW_TYPE)
    rows["id"] = [f"id{i}" for i in range(count)]
    rows["split"], rows["ok"], rows["scale"], rows["grad_norm"] = split, True, 1, 1
    return rows


def _make_store(path, sources: dict[str, np.ndarray], *, shard_rows: int = 4, dtype="float32"):
    """A store that holds the given gradients, a source each, and a target `t`."""
    space = SPACE | {"dtype": dtype}
    store = GradientStore.create(path, space, origin={}, shard_rows=shard_rows)
    entries = [("train", name, gradients) for name, gradients in sources.items()]
    entries.append(("target", "t", np.ones((2, 5), np.float32)))
    for side, name, gradients in entries:
        rows = _table(len(gradients), split="train" if side == "train" else "select")
        shards = store.enter(side, name, rows=len(rows), data_hash="h")
        for i, shard in enumerate(shards):
            part = slice(i * shard_rows, (i + 1) * shard_rows)
            stored, scale = quantise(gradients[part], dtype)
            piece = rows[part].copy()
            piece["scale"] = scale
            write_shard(shard, {"": (stored, piece)}, faults=Faults({}, {}), versions={})
    store.save_plan()
    return GradientStore.open(path)


def _gradients(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


@pytest.fixture
def space():
    return dict(SPACE)


@pytest.fixture
def table():
    """table(count): what is known of `count` good rows."""
    return _table


@pytest.fixture
def gradients():
    """gradients(count): rows of 5 random numbers."""
    return _gradients


@pytest.fixture
def make_store():
    """make_store(path, {source: gradients}): see above."""
    return _make_store
