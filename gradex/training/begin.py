"""The adapter that a training begins with: drawn, or computed from the base and from rows."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from gradex.adapters.attach import attach
from gradex.adapters.folder import export, load
from gradex.adapters.kinds import kind_of
from gradex.data.sources import Sources
from gradex.data.tokens import Batch, Encoder, Example, token_batches
from gradex.errors import unknown
from gradex.models.load import Base
from gradex.models.scoring import TOKENS_PER_BATCH, batch_on
from gradex.training.prepare import source_examples
from gradex.training.recipe import Recipe


def begin(
    recipe: Recipe, base: Base, rows: Sequence[Example], encoder: Encoder, *, folder: Path
) -> nn.Module:
    """A new adapter on the base. One that was computed from rows is kept in
    `folder`/checkpoints/start, so that a training that goes on has the very same one."""
    if not kind_of(recipe.adapter.kind).reads_rows:
        return attach(base, recipe.adapter, seed=recipe.seed, steps=recipe.max_steps)
    kept = folder / "checkpoints" / "start"
    if kept.is_dir():
        return load(base, kept)
    model = attach(
        base, recipe.adapter, seed=recipe.seed, steps=recipe.max_steps,
        batches=_batches(base, _drawn(rows, recipe), encoder),
    )  # fmt: skip
    part = kept.with_name("start.part")
    shutil.rmtree(part, ignore_errors=True)
    export(model, part, base_path=recipe.base.source, card=None)
    part.rename(kept)
    return model


def _drawn(rows: Sequence[Example], recipe: Recipe) -> list[Example]:
    order = np.random.default_rng(recipe.seed).permutation(len(rows))
    return [rows[i] for i in order[: recipe.start_rows]]


def _batches(base: Base, rows: Sequence[Example], encoder: Encoder) -> list[Batch]:
    parts = token_batches([row.length for row in rows], TOKENS_PER_BATCH)
    return [batch_on(base.model, [rows[i] for i in part], encoder) for part in parts]


def start_examples(name: str | None, encoder: Encoder, sources: Sources) -> list[Example] | None:
    """The rows of the named source, for an adapter to begin from; None where none is named."""
    if name is None:
        return None
    if name not in sources.trainable:
        raise unknown("source", name, sources.trainable, "--calib_source")
    found, _ = source_examples(encoder, sources, [name])
    return found[name]
