"""The adapter that a training begins with: drawn, or computed from the base and from rows."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from gradex import runs
from gradex.adapters.attach import attach
from gradex.adapters.folder import export, load
from gradex.adapters.initial import save_initial
from gradex.adapters.kinds import kind_of
from gradex.data.sources import Sources
from gradex.data.tokens import Batch, Encoder, Example, token_batches
from gradex.errors import unknown
from gradex.models.encoding import on_best_device
from gradex.models.load import Base
from gradex.models.scoring import TOKENS_PER_BATCH, batch_on
from gradex.training.prepare import source_examples
from gradex.training.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """Where a training begins: with the adapter in a folder, or with a new one of the recipe, which
    may be computed from `rows` (by default those that are trained on) and is written to `save_to`,
    unless a run that broke off has done so."""

    adapter: Path | None = None
    rows: Sequence[Example] | None = None
    save_to: Path | None = None


def begin(
    recipe: Recipe,
    base: Base,
    *,
    start: Start,
    examples: Sequence[Example],
    encoder: Encoder,
    folder: Path,
) -> nn.Module:
    """The model to train, with the adapter that `start` says."""
    if start.adapter is not None:
        return load(base, start.adapter)
    model = _new_adapter(recipe, base, start.rows or examples, encoder, folder=folder)
    if start.save_to is not None and not (start.save_to.exists() or runs.is_follower()):
        save_initial(model, start.save_to, tokenizer=base.tokenizer, base_path=recipe.base.source)
    return model


def _new_adapter(
    recipe: Recipe, base: Base, rows: Sequence[Example], encoder: Encoder, *, folder: Path
) -> nn.Module:
    """One that was computed, from rows or weights, is kept in `folder`/checkpoints/start, so that a
    training that goes on, on whatever machine, has the very same one."""
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
