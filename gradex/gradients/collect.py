"""The gradient pass over one shard: rows in, sketched gradients and a table out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradex.data.formats import Row
from gradex.data.tokens import Encoder, Example, encode_all, token_batches
from gradex.gradients.per_sample import GradientPass
from gradex.gradients.projectors import Projector
from gradex.gradients.shards import ROW_TYPE, quantise
from gradex.models.losses import Objective
from gradex.models.scoring import batch_on

Differentiate = Literal["loss", "margin", "both"]
OBJECTIVES: dict[str, tuple[Objective, ...]] = {
    "loss": ("loss",),
    "margin": ("margin",),
    "both": ("loss", "margin"),
}


class _Sketch:
    """Sums up the layers' contributions of one batch; nothing of size rows x params is kept."""

    def __init__(self, projector: Projector, samples: int, device: torch.device):
        self.projector = projector
        self.projected = torch.zeros(samples, projector.dim, device=device)
        self.squared_norm = torch.zeros(samples, device=device)

    def add(self, gradient: Tensor, offset: int, samples: slice) -> None:
        self.projected[samples] += self.projector.project(gradient, offset=offset)
        self.squared_norm[samples] += gradient.square().sum(1)


@dataclass(frozen=True)
class Collector:
    """All that turns rows into the arrays of a shard; holds no state between shards."""

    model: nn.Module
    encoder: Encoder
    projector: Projector
    differentiate: Differentiate
    dtype: str
    tokens_per_batch: int

    def collect(
        self, rows: Sequence[Row], splits: Sequence[str]
    ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, str]]:
        """(gradients, table) for each objective's file ending, and row id -> reason of bad rows."""
        objectives = OBJECTIVES[self.differentiate]
        table = np.zeros(len(rows), ROW_TYPE)
        table["id"], table["split"] = [row.id for row in rows], splits
        tables = {objective: table.copy() for objective in objectives}
        gradients = {o: np.zeros((len(rows), self.projector.dim), np.float32) for o in objectives}
        bad = self._fill(rows, tables, gradients)
        parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for objective in objectives:
            ending = "" if objective == objectives[0] else f".{objective}"
            stored, tables[objective]["scale"] = quantise(gradients[objective], self.dtype)
            parts[ending] = (stored, tables[objective])
        return parts, bad

    def _fill(self, rows: Sequence[Row], tables: dict, gradients: dict) -> dict[str, str]:
        examples, bad = encode_all(self.encoder, rows)
        kept = np.array([i for i, row in enumerate(rows) if row.id not in bad])
        gradient_pass = GradientPass(self.model, self.encoder.family)
        lengths = [example.length for example in examples]
        with gradient_pass.hooked():
            for positions in token_batches(lengths, self.tokens_per_batch):
                batch = [examples[i] for i in positions]
                self._fill_batch(gradient_pass, batch, kept[positions], tables, gradients)
        for objective, table in tables.items():
            for row in np.flatnonzero(~table["ok"]):
                bad.setdefault(rows[row].id, f"the gradient of the {objective} is not finite")
        return bad

    def _fill_batch(
        self,
        gradient_pass: GradientPass,
        examples: list[Example],
        at: np.ndarray,
        tables: dict,
        gradients: dict,
    ) -> None:
        batch = batch_on(self.model, examples, self.encoder)
        device = batch["input_ids"].device
        sketches = {o: _Sketch(self.projector, len(examples), device) for o in tables}
        values, counts = gradient_pass.run(batch, {o: s.add for o, s in sketches.items()})
        for objective, sketch in sketches.items():
            projected = sketch.projected.cpu().numpy()
            finite = np.isfinite(projected).all(axis=1)
            gradients[objective][at] = np.where(finite[:, None], projected, 0)
            table = tables[objective]
            table["loss"][at] = values["loss"].cpu().numpy()
            table["margin"][at] = values["margin"].cpu().numpy()
            table["n_tokens"][at] = counts.cpu().numpy()
            table["grad_norm"][at] = sketch.squared_norm.sqrt().cpu().numpy()
            table["ok"][at] = finite
