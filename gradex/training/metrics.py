"""The numbers of every optimizer step: a line of metrics.csv, and the loggers' curves.

Columns are `step`, `loss`, `learning_rate` (that of the optimizer's first group), and what
callbacks give to `FineTuner.note`, such as `select_loss` at the steps where it is measured.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from gradex.records import write_text
from gradex.training.callbacks import LossCurve
from gradex.training.module import FineTuner

Line = dict[str, int | float]


class StepMetrics(pl.Callback):
    """Comes after the curve and after all that notes something. The lines are kept in checkpoints:
    the file has every step once, however often the training broke off."""

    def __init__(self, curve: LossCurve, file: Path):
        self.curve, self.file = curve, file
        self.lines: list[Line] = []

    def state_dict(self) -> dict[str, Any]:
        return {"lines": list(self.lines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lines = list(state["lines"])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: FineTuner, optimizer: Optimizer
    ) -> None:
        # When the batch ends, the schedule is at the next step.
        self.rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: FineTuner, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        step = trainer.global_step
        if step == len(self.lines):
            return
        line = {"step": step, "loss": self.curve.losses[-1], "learning_rate": self.rate}
        self.lines.append(line | module.noted)
        module.noted.clear()
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in self.lines[-1].items() if k != "step"}, step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: FineTuner, checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)

    def on_fit_end(self, trainer: pl.Trainer, module: FineTuner) -> None:
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.global_rank == 0:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, as_csv(self.lines))


def as_csv(lines: Sequence[Line]) -> str:
    """Columns in the order in which lines first have them; nothing where a line has none."""
    stream = io.StringIO()
    columns = dict.fromkeys(name for line in lines for name in line)
    table = csv.DictWriter(stream, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _text(value) for name, value in line.items()} for line in lines)
    return stream.getvalue()


def _text(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
