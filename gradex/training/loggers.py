"""TensorBoard and Weights & Biases, where --report_to names them: the numbers of metrics.csv."""

import os
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger

from gradex.errors import GradexError, first_line


def require_loggers(names: Iterable[str] | None) -> None:
    """Their packages are no dependencies."""
    for name in _asked(names):
        if find_spec(name) is None:
            raise GradexError(
                f"--report_to {name}: the package {name} is not installed; `pip install {name}`, "
                "or leave it out: metrics.csv has the same numbers"
            )


def make_loggers(names: Iterable[str] | None, folder: Path) -> list[Logger]:
    """They write below the folder. W&B goes by its own environment, WANDB_MODE=offline included."""
    require_loggers(names)
    return [_begun(name, MAKERS[name], folder) for name in _asked(names)]


def close_loggers(loggers: Sequence[Logger]) -> None:
    """A W&B run is open until the process ends or another one begins."""
    for logger in loggers:
        finish = getattr(logger.experiment, "finish", None)
        if finish is not None:
            finish()


def _asked(names: Iterable[str] | None) -> list[str]:
    return [name for name in dict.fromkeys(names or ()) if name != "none"]


def _tensorboard(folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)


def _wandb(folder: Path) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    project = os.environ.get("WANDB_PROJECT", "gradex")
    return WandbLogger(save_dir=folder, project=project, name=folder.name.removesuffix(".part"))


MAKERS: dict[str, Callable[[Path], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def _begun(name: str, make: Callable[[Path], Logger], folder: Path) -> Logger:
    """Begun at once: what it needs and does not have is told before the training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        logger = make(folder)
        _ = logger.experiment
        return logger
    except Exception as error:  # each raises errors of its own kinds
        raise GradexError(f"--report_to {name}: cannot be begun ({first_line(error)})") from None
