"""AdaLoRA while training: its budget is dealt out after every optimizer step."""

import logging
from typing import Any

import lightning.pytorch as pl
from torch import nn

from gradex.adapters.adalora import Allocator, is_adalora
from gradex.progress import say_once

log = logging.getLogger(__name__)


def rank_callbacks(model: nn.Module, *, steps: int, is_new: bool) -> list[pl.Callback]:
    """What AdaLoRA needs beside the steps. An adapter that is gone on from keeps its ranks: what
    it was allowed to keep was dealt out in the training that it comes from."""
    if not is_adalora(model):
        return []
    if not is_new:
        say_once("AdaLoRA goes on from an adapter: its ranks stay as they are")
        return []
    return [AllocateRanks(Allocator(model, steps=steps))]


class AllocateRanks(pl.Callback):
    """Has to come before callbacks that take other gradients or keep the adapter.

    The allocator's averages are in the checkpoints. Lightning clears gradients before the next
    backward pass, so that those of the step are there when a batch ends.
    """

    def __init__(self, allocator: Allocator):
        self.allocator = allocator

    def state_dict(self) -> dict[str, Any]:
        return self.allocator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.allocator.load_state_dict(state)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.done = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        if trainer.global_step > self.done:  # and not one batch more of the same step
            self.done = trainer.global_step
            self.allocator.after_step(self.done)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        settled = self.allocator.budget.settled
        if self.done < settled:
            log.warning(
                "AdaLoRA: training ended after %d steps, before step %d, at which ranks are "
                "settled; layers keep more than --lora_r", self.done, settled,
            )  # fmt: skip
