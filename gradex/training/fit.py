"""Follow a recipe: train an adapter with Lightning, go on where a run broke off."""

import logging
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn

from gradex.data.tokens import Encoder, Example
from gradex.errors import GradexError, first_line
from gradex.models.load import Base
from gradex.training.begin import Start, begin
from gradex.training.callbacks import KeepAdapters, LossCurve
from gradex.training.loggers import close_loggers, make_loggers
from gradex.training.metrics import StepMetrics
from gradex.training.mixture import Mixture
from gradex.training.module import FineTuner
from gradex.training.optimizers import OPTIMIZERS
from gradex.training.projected import ProjectedFraction
from gradex.training.ranks import rank_callbacks
from gradex.training.recipe import Recipe

log = logging.getLogger(__name__)
NEW = Start()
CHECKPOINTS = 10  # about this many are written during a run, each over the one before


def fit(
    recipe: Recipe,
    base: Base,
    *,
    examples: Sequence[Example],
    encoder: Encoder,
    folder: Path,
    name: str,
    start: Start = NEW,
    keep_at: Sequence[int] = (),
    mixture: Mixture | None = None,
    beside: Sequence[pl.Callback] = (),
    report_to: Sequence[str] = (),
) -> tuple[nn.Module, list[float]]:
    """The trained model (base with adapter, eval mode) and the loss of every optimizer step.

    Checkpoints go to `folder`/checkpoints; where one lies there, training goes on from it. The
    adapter as it is after each of the steps `keep_at` goes to `folder`/points, and the numbers of
    every step to `folder`/metrics.csv and the loggers of `report_to`. Batches are drawn by the
    shares of a `mixture`, where there is one. What else there is to do at steps (mixers, masks,
    looks at select rows) is in `beside`; it comes first at the end of each.
    Optimizers that project their steps tell how often, in `folder`/projected.csv.
    """
    if not examples:
        raise GradexError(f"{name}: no row to train on")
    model = begin(recipe, base, start=start, examples=examples, encoder=encoder, folder=folder)
    module = FineTuner(model.train(), recipe, examples=examples, encoder=encoder, mixture=mixture)
    curve = LossCurve(name, steps=recipe.max_steps)
    callbacks = [
        *rank_callbacks(model, steps=recipe.max_steps, is_new=start.adapter is None),
        *beside,
        curve,
        *_counting(recipe, name, folder),
        StepMetrics(curve, folder / "metrics.csv"),
        KeepAdapters(keep_at, folder, base_path=recipe.base.source),
        _saver(recipe, folder),
    ]
    last = _checkpoint(folder / "checkpoints" / "step.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = make_loggers(report_to, folder)
        trainer = _trainer(recipe, callbacks, loggers)
        _run(trainer, module, last)
    close_loggers(loggers)
    _require_finite(module)
    return module.model.eval(), curve.losses


def _counting(recipe: Recipe, name: str, folder: Path) -> list[pl.Callback]:
    projects = OPTIMIZERS[recipe.optimizer.name].projects
    return [ProjectedFraction(name, folder)] if projects else []


def _saver(recipe: Recipe, folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="step",
        every_n_train_steps=max(1, recipe.max_steps // CHECKPOINTS),
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def _checkpoint(file: Path) -> Path | None:
    """The checkpoint to go on from; one that a crash has damaged is not."""
    if not file.exists():
        return None
    try:
        torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        log.warning("%s: not readable (%s), training begins again", file, type(error).__name__)
        return None
    return file


def _require_finite(module: FineTuner) -> None:
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise GradexError(f"training has spoiled '{name}'; try a lower --learning_rate")


def _run(trainer: pl.Trainer, module: FineTuner, checkpoint: Path | None) -> None:
    """Train; Ctrl-C stays an interrupt, and of several processes only the first one returns."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if trainer.global_rank != 0:
        raise SystemExit(0)


def _trainer(recipe: Recipe, callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    devices = int(recipe.devices) if recipe.devices.lstrip("-").isdigit() else recipe.devices
    try:
        return pl.Trainer(
            max_steps=recipe.max_steps,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=1.0,
            precision=recipe.precision,
            devices=devices,
            num_nodes=recipe.num_nodes,
            strategy=recipe.strategy,
            callbacks=callbacks,
            logger=loggers,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise GradexError(
            f"--devices {recipe.devices} --strategy {recipe.strategy} --precision "
            f"{recipe.precision}: {first_line(error)}"
        ) from None
