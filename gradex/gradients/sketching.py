"""How gradients become the rows of a store: projection, numbers on disk, batches."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, encode_all
from gradex.gradients import precondition
from gradex.gradients.budget import fitting_tokens
from gradex.gradients.collect import Collector, Differentiate
from gradex.gradients.description import digest
from gradex.gradients.features import KIND, Watch
from gradex.gradients.per_sample import Pass
from gradex.gradients.projectors import best_projector, make_projector

AUTO = "auto"
log = logging.getLogger(__name__)
Divisor = Float[np.ndarray, " param"] | None


@dataclass(frozen=True)
class Sketching:
    """The part of a store's space that its maker chooses.

    `tokens_per_batch` "auto" and `precondition` "adam" are open: `settle` measures them when a
    store is created, and `as_in` takes what an existing store has settled.
    """

    projector: str
    project_dim: int
    seed: int
    differentiate: Differentiate
    dtype: str
    precondition: str
    tokens_per_batch: int | str
    features: bool

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "Sketching":
        """From flags, where the projector may be `auto` and the budget is a word."""
        names = cls.__dataclass_fields__
        made = cls(**{name: settings[name] for name in names})
        budget = str(made.tokens_per_batch)
        return replace(
            made,
            projector=best_projector() if made.projector == AUTO else made.projector,
            tokens_per_batch=AUTO if budget == AUTO else int(budget),
        )

    def space(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        projector = make_projector(self.projector, self.project_dim, seed=self.seed)
        space = asdict(self) | {"projection": projector.fingerprint}
        del space["features"]
        return space | ({"features": KIND} if self.features else {})

    def as_in(self, space: dict[str, Any]) -> "Sketching":
        """With what is open here as a store's space has it."""
        settled = self
        if self.tokens_per_batch == AUTO:
            settled = replace(settled, tokens_per_batch=space["tokens_per_batch"])
        if self.precondition == "adam" and space["precondition"].startswith("adam "):
            settled = replace(settled, precondition=space["precondition"])
        return settled

    def settle(
        self, gradients: Pass, encoder: Encoder, sources: Sources, *, num_workers: int
    ) -> tuple["Sketching", Divisor]:
        """Measure what is open, once, on some training rows."""
        settled, divisor = self, None
        rows = precondition.some_rows(sources)
        if self.tokens_per_batch == AUTO:
            longest = sorted(encode_all(encoder, rows)[0], key=lambda e: -e.length)[:4]
            budget = fitting_tokens(gradients, encoder, longest, num_workers=num_workers)
            log.info("tokens_per_batch: %d, from the free memory", budget)
            settled = replace(settled, tokens_per_batch=budget)
        if self.precondition == "adam":
            budget = int(settled.tokens_per_batch)
            divisor = precondition.adam_divisor(gradients, encoder, rows, tokens_per_batch=budget)
            settled = replace(settled, precondition=f"adam {digest(divisor)}")
        return settled, divisor

    def collector(self, gradients: Pass, encoder: Encoder, divisor: Divisor) -> Collector:
        """What turns rows into shards, on the device of the model."""
        device = next(gradients.model.parameters()).device
        return Collector(
            gradients,
            encoder,
            make_projector(self.projector, self.project_dim, seed=self.seed),
            self.differentiate,
            self.dtype,
            int(self.tokens_per_batch),
            None if divisor is None else torch.from_numpy(1 / divisor).to(device),
            Watch(gradients.model, encoder.family) if self.features else None,
        )
