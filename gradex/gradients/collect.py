"""The gradient pass over one shard: rows in, sketched gradients and a table out."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradex.data.formats import Row
from gradex.data.tokens import Batch, Encoder, encode_all, token_batches
from gradex.gradients.features import Placed, Watch, in_order
from gradex.gradients.per_sample import Pass
from gradex.gradients.projectors import Projector
from gradex.gradients.shards import FEATURES, ROW_TYPE, Faults, Parts, quantise
from gradex.models.losses import Objective
from gradex.models.scoring import batch_on

Differentiate = Literal["loss", "margin", "both"]
OBJECTIVES: dict[str, tuple[Objective, ...]] = {
    "loss": ("loss",),
    "margin": ("margin",),
    "both": ("loss", "margin"),
}


class Sketch:
    """Sums up the layers' contributions of one batch; nothing of size rows x params is kept."""

    def __init__(
        self,
        projector: Projector,
        samples: int,
        device: torch.device,
        scale: Float[Tensor, " param"] | None = None,
    ):
        self.projector, self.scale = projector, scale
        self.projected = torch.zeros(samples, projector.dim, device=device)
        self.squared_norm = torch.zeros(samples, device=device)

    def add(self, gradient: Float[Tensor, "sample param"], offset: int, samples: slice) -> None:
        if self.scale is not None:
            gradient = gradient * self.scale[offset : offset + gradient.shape[1]]
        self.projector.project(gradient, offset=offset, out=self.projected[samples])
        self.squared_norm[samples].add_(torch.linalg.vector_norm(gradient, dim=1).square())


@dataclass(frozen=True)
class Collector:
    """All that turns rows into the arrays of a shard; holds no state between shards.

    `scale` multiplies each parameter's gradient before it is projected (see precondition).
    With a `watch` each row's features are kept as well.
    """

    gradients: Pass
    encoder: Encoder
    projector: Projector
    differentiate: Differentiate
    dtype: str
    tokens_per_batch: int
    scale: Float[Tensor, " param"] | None = None
    watch: Watch | None = None

    def collect(
        self, rows: Sequence[Row], splits: Sequence[str], advance: Callable[[int], None]
    ) -> tuple[Parts, Faults]:
        """(gradients, table) for each objective's file ending, and with a watch the features;
        `advance` hears of tokens done."""
        objectives = OBJECTIVES[self.differentiate]
        table = np.zeros(len(rows), ROW_TYPE)
        table["id"], table["split"] = [row.id for row in rows], splits
        tables = {objective: table.copy() for objective in objectives}
        found = {o: np.zeros((len(rows), self.projector.dim), np.float32) for o in objectives}
        examples, left_out = encode_all(self.encoder, rows)
        kept = np.array([i for i, row in enumerate(rows) if row.id not in left_out], dtype=np.int64)
        features: Placed = []
        watching = nullcontext() if self.watch is None else self.watch.watching()
        with self.gradients.hooked(), watching:
            for at in token_batches([e.length for e in examples], self.tokens_per_batch):
                batch = batch_on(self.gradients.model, [examples[i] for i in at], self.encoder)
                self._fill(batch, kept[at], tables, found)
                if self.watch is not None:
                    features.append((kept[at], self.watch.features(batch)))
                advance(sum(examples[i].length for i in at))
        parts: Parts = {}
        for objective in objectives:
            ending = "" if objective == objectives[0] else f".{objective}"
            stored, tables[objective]["scale"] = quantise(found[objective], self.dtype)
            parts[ending] = (stored, tables[objective])
        if self.watch is not None:
            parts[FEATURES] = (in_order(features, len(rows)),)
        return parts, Faults(left_out, _reasons(rows, kept, tables))

    def _fill(self, batch: Batch, at: np.ndarray, tables: dict, found: dict) -> None:
        device = batch["input_ids"].device
        sketches = {o: Sketch(self.projector, len(at), device, self.scale) for o in tables}
        values, counts = self.gradients.run(batch, {o: s.add for o, s in sketches.items()})
        for objective, sketch in sketches.items():
            projected = sketch.projected.cpu().numpy()
            norm = sketch.squared_norm.sqrt().cpu().numpy()
            finite = np.isfinite(projected).all(axis=1) & np.isfinite(norm)
            found[objective][at] = np.where(finite[:, None], projected, 0)
            table = tables[objective]
            table["loss"][at] = values["loss"].cpu().numpy()
            table["margin"][at] = values["margin"].cpu().numpy()
            table["n_tokens"][at] = counts.cpu().numpy()
            table["grad_norm"][at] = norm
            table["ok"][at] = finite & np.isfinite(table["loss"][at])


def _reasons(rows: Sequence[Row], kept: np.ndarray, tables: dict) -> dict[str, str]:
    """Row id -> what is not finite, for the rows that the pass went over."""
    bad: dict[str, str] = {}
    for objective, table in tables.items():
        for row in kept[~table["ok"][kept]]:
            what = f"gradient of the {objective}" if np.isfinite(table["loss"][row]) else "loss"
            bad.setdefault(rows[row].id, f"its {what} is not finite")
    return bad
