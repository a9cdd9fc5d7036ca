"""Stores whose gradients, losses and norms are given, for estimators to be held against."""

import numpy as np

from gradex.gradients.shards import ROW_TYPE, Faults, write_shard
from gradex.gradients.store import GradientStore


def store_of(path, sources: dict, targets: dict, *, loss=1.5, shard_rows: int = 8) -> GradientStore:
    """Sources and targets as given; `loss` is one number, or {name: a number a row}."""
    dim = next(iter(sources.values())).shape[1]
    space = {
        "project_dim": dim,
        "differentiate": "loss",
        "dtype": "float32",
        "precondition": "none",
    }
    store = GradientStore.create(path, space, origin={}, shard_rows=shard_rows)
    for side, named in (("train", sources), ("target", targets)):
        for name, gradients in named.items():
            rows = np.zeros(len(gradients), ROW_TYPE)
            rows["id"] = [f"{name}{i}" for i in range(len(rows))]
            rows["split"] = "train" if side == "train" else "select"
            rows["grad_norm"] = np.linalg.norm(gradients, axis=1)
            rows["ok"], rows["scale"], rows["n_tokens"] = True, 1, 2
            rows["loss"] = loss[name] if isinstance(loss, dict) else loss
            for i, shard in enumerate(store.enter(side, name, rows=len(rows), data_hash="h")):
                part = slice(shard_rows * i, shard_rows * (i + 1))
                pair = (gradients[part].astype(np.float32), rows[part])
                write_shard(shard, {"": pair}, faults=Faults({}, {}), versions={})
    store.save_plan()
    return GradientStore.open(path)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
