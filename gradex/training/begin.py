"""The adapter that a training begins with: drawn, or computed from the base and from rows."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from gradex import runs
from gradex.adapters.attach import attach
from gradex.adapters.folder import export, load
from gradex.adapters.kinds import kind_of
from gradex.data.sources import Sources
from gradex.data.tokens import Batch, Encoder, Example, token_batches
from gradex.errors import unknown
from gradex.models.encoding import on_best_device
from gradex.models.load import Base
from gradex.models.scoring import TOKENS_PER_BATCH, batch_on
from gradex.training.prepare import source_examples
from gradex.training.recipe import Recipe


def begin(
    recipe: Recipe, base: Base, rows: Sequence[Example], encoder: Encoder, *, folder: Path
) -> nn.Module:
    """A new adapter on the base. One that was computed, from rows or weights, is kept in
    `folder`/checkpoints/start, so that a training that goes on, on whatever machine, has the very
    same one."""
    kind = kind_of(recipe.adapter.kind)
    if not (kind.reads_rows or kind.from_base):
        return attach(base, recipe.adapter, seed=recipe.seed, steps=recipe.max_steps)
    kept = folder / "checkpoints" / "start"
    if kept.is_dir():
        return load(base, kept)
    base = on_best_device(base, index=int(os.environ.get("LOCAL_RANK", "0")))
    batches = []
    if kind.reads_rows:
        batches = calibration_batches(
            base, rows, encoder, count=recipe.start_rows, seed=recipe.seed
        )
    model = attach(base, recipe.adapter, seed=recipe.seed, steps=recipe.max_steps, batches=batches)
    if runs.is_follower():
        return model
    part = kept.with_name("start.part")
    shutil.rmtree(part, ignore_errors=True)
    export(model, part, base_path=recipe.base.source, card=None)
    part.rename(kept)
    return model


def calibration_batches(
    base: Base, rows: Sequence[Example], encoder: Encoder, *, count: int, seed: int
) -> list[Batch]:
    """At most `count` of the rows, drawn by the seed, on the base's device."""
    order = np.random.default_rng(seed).permutation(len(rows))
    drawn = [rows[i] for i in order[:count]]
    parts = token_batches([row.length for row in drawn], TOKENS_PER_BATCH)
    return [batch_on(base.model, [drawn[i] for i in part], encoder) for part in parts]


def start_examples(name: str | None, encoder: Encoder, sources: Sources) -> list[Example] | None:
    """The rows of the named source, for an adapter to begin from; None where none is named."""
    if name is None:
        return None
    if name not in sources.trainable:
        raise unknown("source", name, sources.trainable, "--calib_source")
    found, _ = source_examples(encoder, sources, [name])
    return found[name]
