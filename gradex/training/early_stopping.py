"""Looks at the targets' select rows while training, which may end it where these no longer gain.

The loss is the mean over the targets of the mean over their select rows. Test rows are not read.
Where training may end early, the adapter it ends with is that of the smallest loss seen.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from gradex.adapters.adalora import is_adalora
from gradex.data.tokens import Example
from gradex.errors import GradexError
from gradex.models.scoring import row_losses
from gradex.training.directions import at_rest
from gradex.training.module import FineTuner

LOOKS = 10  # in a training that may end early, where nothing else is said
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Looking:
    """A look every so many optimizer steps and at the end; with `patience`, training ends after so
    many in a row without a smaller loss."""

    every: int
    patience: int | None = None


def looking(every: int | None, patience: int | None, *, steps: int) -> Looking | None:
    """As the flags --eval_every and --early_stopping say; None where there is nothing to look."""
    if every is None and patience is None:
        return None
    return Looking(every or max(1, steps // LOOKS), patience)


class SelectLoss(pl.Callback):
    """Measures, keeps the best adapter, ends the training. All of it is kept in checkpoints."""

    def __init__(self, looking: Looking, examples: Mapping[str, Sequence[Example]]):
        self.looking, self.examples = looking, examples
        self.losses: dict[int, float] = {}  # step -> loss
        self.best: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": dict(self.losses), "best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.best = dict(state["losses"]), dict(state["best"])

    @property
    def best_step(self) -> int:
        """The first step with the smallest loss."""
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def kept_step(self) -> int | None:
        """The step whose adapter the training has ended with, where that may not be its last."""
        return self.best_step if self.looking.patience and self.losses else None

    @property
    def is_over(self) -> bool:
        later = [step for step in self.losses if step > self.best_step] if self.losses else []
        return self.looking.patience is not None and len(later) >= self.looking.patience

    def on_fit_start(self, trainer: pl.Trainer, module: FineTuner) -> None:
        if self.looking.patience and is_adalora(module.model):
            raise GradexError(
                "--early_stopping: AdaLoRA deals out its ranks over all of --max_steps, and what "
                "it has before their end is more than it may keep; leave it out"
            )
        trainer.should_stop = self.is_over

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: FineTuner, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        step = trainer.global_step
        is_due = step % self.looking.every == 0 or step == trainer.max_steps
        if step == 0 or not is_due or step in self.losses:
            return
        self.losses[step] = self._measure(trainer, module)
        module.note(select_loss=self.losses[step])
        if self.looking.patience and self.best_step == step:
            self.best = {
                name: t.detach().cpu().clone() for name, t in module.trained_state().items()
            }
        self._tell(trainer, step)
        trainer.should_stop = self.is_over

    def _measure(self, trainer: pl.Trainer, module: FineTuner) -> float:
        """The first process measures for all: they have to end at the same step."""
        loss = None
        if trainer.global_rank == 0:
            with at_rest(module.model), trainer.precision_plugin.forward_context():
                found = [
                    row_losses(module.model, examples, module.encoder, name="select losses").mean()
                    for examples in self.examples.values()
                ]
            loss = float(np.mean(found))
        loss = trainer.strategy.broadcast(loss)
        if not math.isfinite(loss):
            raise GradexError(
                f"the select loss is {loss} at step {trainer.global_step}; try a lower "
                "--learning_rate"
            )
        return loss

    def _tell(self, trainer: pl.Trainer, step: int) -> None:
        if trainer.global_rank == 0:
            best = self.best_step
            log.info(
                "step %d: select loss %.4f%s%s", step, self.losses[step],
                "" if best == step else f", {self.losses[best]:.4f} at step {best}",
                "; training ends here" if self.is_over else "",
            )  # fmt: skip

    def on_fit_end(self, trainer: pl.Trainer, module: FineTuner) -> None:
        if self.best:
            module.load_state_dict(self.best, strict=False)
