"""The fine-tune as a LightningModule: mean label loss per sample, an optimizer, a schedule."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from gradex.adapters.adalora import orthogonality
from gradex.data.tokens import Batch, Encoder, Example, collate
from gradex.errors import GradexError
from gradex.models.losses import sample_objectives
from gradex.training.mixture import DrawByShares, Drawing, Mixture, TokenBatches, batch_rows
from gradex.training.optimizers import make_optimizer, make_schedule
from gradex.training.recipe import Recipe

TOLD = "loss of the rows"


class FineTuner(pl.LightningModule):
    """Trains an attached adapter on examples. Its loss is the mean of the samples' losses, and with
    AdaLoRA the penalty that keeps its triplets apart.

    With a mixture, batches are drawn by its shares, which may change from step to step.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        examples: Sequence[Example],
        encoder: Encoder,
        mixture: Mixture | None = None,
    ):
        super().__init__()
        self.model, self.recipe = model, recipe
        self.examples, self.encoder, self.mixture = examples, encoder, mixture
        self.noted: dict[str, float] = {}
        # A checkpoint holds the trained parameters alone.
        self.strict_loading = False

    def note(self, **values: float) -> None:
        """Numbers of the step that is being made: each has a column of metrics.csv beside the loss,
        and a curve in the loggers. For callbacks, until their `on_train_batch_end`."""
        self.noted.update(values)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, torch.Tensor]:
        values, _ = sample_objectives(self.model, batch, self.encoder.family)
        loss = values["loss"].mean() * self._weight(len(values["loss"]))
        if not torch.isfinite(loss):
            raise GradexError(
                f"the training loss is {loss.item()} at step {self.global_step}; try a lower "
                "--learning_rate or another --precision"
            )
        # What is told of the training is the loss of the rows, and no penalty.
        return {"loss": loss + orthogonality(self.model), TOLD: loss.detach()}

    def _weight(self, rows: int) -> float:
        """Of a batch in its step: with it, the mean over the step's batches, of all ranks, is the
        mean over their rows, however many each has."""
        if not isinstance(self._draw, TokenBatches):
            return 1.0
        batches = self.recipe.accumulate * self.trainer.world_size
        first = self.global_step * batches
        sizes = map(self._draw.size, range(first, first + batches))
        return rows * batches / sum(sizes)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        # Dropout as a function of seed and step, so that a resumed run repeats it.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.trainer.fit_loop.total_batch_idx)

    def configure_optimizers(self) -> dict[str, Any]:
        recipe, spec = self.recipe, self.recipe.optimizer
        optimizer = make_optimizer(
            spec, self.model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule = make_schedule(
            spec.schedule, optimizer, warmup=recipe.warmup_steps, steps=recipe.max_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Numbers of batches. Loaders fetch ahead, and what is in a batch may depend on shares
        that are solved for until its step comes: its rows are drawn then."""
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        self._draw = self._drawing(batches_per_step=self.recipe.accumulate * ranks)
        first = self.trainer.global_step * self.recipe.accumulate
        return DataLoader(BatchNumbers(first * ranks + rank, ranks), batch_size=None)

    def _drawing(self, *, batches_per_step: int) -> Drawing:
        size, seed = self.recipe.batch_size, self.recipe.seed
        if self.recipe.tokens_per_batch is not None:
            lengths = [example.length for example in self.examples]
            return TokenBatches(lengths, self.recipe.tokens_per_batch, seed=seed)
        if self.mixture is None:
            return partial(batch_rows, len(self.examples), size, seed=seed)
        return DrawByShares(
            self.mixture, batch_size=size, batches_per_step=batches_per_step, seed=seed
        )

    def on_before_batch_transfer(self, batch: int, dataloader_idx: int) -> Batch:
        return collate(
            [self.examples[i] for i in self._draw(batch)],
            family=self.encoder.family,
            pad_id=self.encoder.tokenizer.pad_token_id,
        )

    def trained_state(self) -> dict[str, torch.Tensor]:
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.trained_state()
        if self.mixture is not None:
            checkpoint["shares"] = list(self.mixture.history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.mixture is not None:
            self.mixture.history[:] = checkpoint["shares"]


class BatchNumbers(IterableDataset):
    """Endless: first, first + by, first + 2 by, ..."""

    def __init__(self, first: int, by: int):
        self.first, self.by = first, by

    def __iter__(self) -> Iterator[int]:
        return count(self.first, self.by)
