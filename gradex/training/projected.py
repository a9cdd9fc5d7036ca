"""How often AdamP and SGDP take the radial part out of a step (Heo et al., ICLR 2021).

    u -= w^ (w^ . u)   if max |cos(g, w)| < delta / sqrt(dim),   w^ = w / |w|

first for every row of a matrix, and if not there for the matrix as a whole. A gradient that is
orthogonal to its weight is the mark of a weight whose length the model does not feel, as before a
normalisation: there, the radial part of a step with momentum only lengthens the weight and so makes
later steps smaller. It can matter where whole normalised layers are trained (`--adapter full`), in
heads that normalise their weights, and in matrices that are directions as those of DoRA.

The matrices of plain LoRA are no such weights. With these, AdamP is AdamW plus projections by
chance: of random vectors in many dims, |cos| sqrt(dim) is the size of a normal number, and below
the default delta = 0.1 in 8 % of steps. Gradients of a training point along their weights more
than random ones do: on the demo model 2.5 to 4.3 % of a step's tensors were projected, and AdamP
ended as near to AdamW as one seed of it to the next. A matrix of zeros, as B at first, counts as
projected though there is nothing to take out.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from gradex.records import write_text

log = logging.getLogger(__name__)
Counts = tuple[int, int]  # tensors projected, of how many of two dims and more


class CountsProjections:
    """Mixed into AdamP or SGDP: `projected` has the counts of the last step, group by group."""

    projected: list[Counts]

    def step(self, closure: Any = None) -> Any:
        fired: dict[int, bool] = {}
        with _listening(fired):
            loss = super().step(closure)
        self.projected = [_counted(group, fired) for group in self.param_groups]
        return loss


@contextmanager
def _listening(fired: dict[int, bool]) -> Iterator[None]:
    """Whether a tensor is projected is decided in one function of the package, and only there."""
    from pytorch_optimizer.optimizer import adamp

    decide = adamp.projection

    def told(p: Tensor, *settings: Any) -> tuple[Tensor, float]:
        update, ratio = decide(p, *settings)
        fired[id(p)] = ratio != 1  # the classes take a wd_ratio below 1 only
        return update, ratio

    adamp.projection = told
    try:
        yield
    finally:
        adamp.projection = decide


def _counted(group: Mapping[str, Any], fired: Mapping[int, bool]) -> Counts:
    asked = [fired[id(p)] for p in group["params"] if id(p) in fired]
    return sum(asked), len(asked)


class ProjectedFraction(pl.Callback):
    """The fraction of tensors that each optimizer step projected, kept through checkpoints.

    `fractions` has a curve for all tensors and, of several groups, one for each; it is written to
    projected.csv in the folder.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.groups: list[str] = []
        self.counts: list[list[Counts]] = []  # of every step, those of its groups

    @property
    def fractions(self) -> dict[str, list[float]]:
        found = {"all": [_fraction(step) for step in self.counts]}
        if len(self.groups) > 1:
            for i, group in enumerate(self.groups):
                found[group] = [_fraction([step[i]]) for step in self.counts]
        return found

    @property
    def means(self) -> dict[str, float]:
        """Over all steps."""
        curves = self.fractions
        return {group: sum(curve) / max(1, len(curve)) for group, curve in curves.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = list(state["counts"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.counts = self.counts[: trainer.global_step]
        groups = trainer.optimizers[0].param_groups
        self.groups = [group.get("name", str(i)) for i, group in enumerate(groups)]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        if trainer.global_step > len(self.counts):
            self.counts.append(trainer.optimizers[0].projected)
            module.note(projected_fraction=_fraction(self.counts[-1]))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_rank != 0:
            return
        told = ", ".join(f"{group} {100 * mean:.1f} %" for group, mean in self.means.items())
        log.info("%s: tensors projected in a step: %s", self.name, told)
        write_text(self.folder / "projected.csv", self._csv())

    def _csv(self) -> str:
        curves = self.fractions
        rows = zip(*curves.values(), strict=True)
        lines = [f"{step},{','.join(map(str, row))}" for step, row in enumerate(rows, 1)]
        return "\n".join([",".join(["step", *curves]), *lines, ""])


def _fraction(counts: list[Counts]) -> float:
    fired, asked = (sum(column) for column in zip(*counts, strict=True))
    return fired / asked if asked else 0.0
