"""What happens beside the steps: a progress bar, the loss curve, adapters kept on the way."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from gradex.adapters.folder import export
from gradex.adapters.points import point_folder
from gradex.progress import progress
from gradex.training.module import TOLD


class LossCurve(pl.Callback):
    """The training loss of every optimizer step, kept through checkpoints; a bar shows it."""

    def __init__(self, name: str, *, steps: int):
        self.name, self.steps = name, steps
        self.losses: list[float] = []
        self._open: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.losses = self.losses[: trainer.global_step]
        self.bar = progress(
            self.name,
            self.steps,
            unit="step",
            initial=trainer.global_step,
            show=trainer.global_rank == 0,
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        self._open.append(float(trainer.strategy.reduce(outputs[TOLD], reduce_op="mean")))
        if trainer.global_step > len(self.losses):
            self.losses.append(sum(self._open) / len(self._open))
            self._open = []
            self.bar.update()
            self.bar.set_postfix(loss=f"{self.losses[-1]:.3f}", refresh=False)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class KeepAdapters(pl.Callback):
    """Exports the adapter as it is after each of the steps, to `folder`/points/<step>.

    A step's checkpoint is written after this callback has run, so that training which goes on
    from a checkpoint has every point behind it on disk.
    """

    def __init__(self, steps: Sequence[int], folder: Path, *, base_path: str):
        self.steps, self.folder, self.base_path = frozenset(steps), folder, base_path

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        step = trainer.global_step
        place = point_folder(self.folder, step)
        if step not in self.steps or trainer.global_rank != 0 or place.exists():
            return
        part = place.with_name(f"{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a training that was killed here
        export(module.model, part, base_path=self.base_path, card=None)
        part.rename(place)
