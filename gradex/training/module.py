"""The fine-tune as a LightningModule: mean label loss per sample, AdamW, linear decay."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from gradex.data.tokens import Batch, Encoder, Example, collate
from gradex.errors import GradexError
from gradex.models.losses import sample_objectives
from gradex.training.recipe import Recipe


class FineTuner(pl.LightningModule):
    """Trains an attached adapter on examples. Its loss is the mean of the samples' losses."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, examples: Sequence[Example], encoder: Encoder
    ):
        super().__init__()
        self.model, self.recipe = model, recipe
        self.examples, self.encoder = examples, encoder
        # A checkpoint holds the trained parameters alone.
        self.strict_loading = False

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        values, _ = sample_objectives(self.model, batch, self.encoder.family)
        loss = values["loss"].mean()
        if not torch.isfinite(loss):
            raise GradexError(
                f"the training loss is {loss.item()} at step {self.global_step}; try a lower "
                "--learning_rate or another --precision"
            )
        return loss

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        # Dropout as a function of seed and step, so that a resumed run repeats it.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.trainer.fit_loop.total_batch_idx)

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.recipe
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

        def fraction(step: int) -> float:
            if step < recipe.warmup_steps:
                return (step + 1) / recipe.warmup_steps
            rest = max(1, recipe.max_steps - recipe.warmup_steps)
            return max(0.0, (recipe.max_steps - step) / rest)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        stream = BatchStream(
            self,
            first=trainer.global_step * self.recipe.accumulate,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return DataLoader(stream, batch_size=None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}


class BatchStream(IterableDataset):
    """Endless batches from the `first` one on; batch i is a function of the seed and i alone."""

    def __init__(self, module: FineTuner, *, first: int, rank: int, world_size: int):
        self.module, self.first = module, first
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        examples, encoder = self.module.examples, self.module.encoder
        recipe = self.module.recipe
        index = self.first
        while True:
            place = index * self.world_size + self.rank
            rows = batch_rows(len(examples), recipe.batch_size, place, seed=recipe.seed)
            yield collate(
                [examples[i] for i in rows],
                family=encoder.family,
                pad_id=encoder.tokenizer.pad_token_id,
            )
            index += 1


def batch_rows(count: int, batch_size: int, index: int, *, seed: int) -> list[int]:
    """The rows of batch `index`: passes over all rows, each in an order of its own."""
    places = range(index * batch_size, (index + 1) * batch_size)
    return [int(_epoch_order(count, place // count, seed)[place % count]) for place in places]


@lru_cache(maxsize=2)
def _epoch_order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
