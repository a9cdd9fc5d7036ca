"""Masks: entries of what is trained that stay exactly as they began.

A mask is a bool tensor by the name of a trained parameter, True where it may change. Gradients are
set to zero off the mask before they are clipped, so that they count for nothing; and since weight
decay, and steps that mix the entries of a tensor, move entries without a gradient too, these are
put back after every step.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Bool
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from gradex.adapters.residual import ADAPTER
from gradex.errors import GradexError

Masks = dict[str, Bool[Tensor, "..."]]


def read_masks(file: Path) -> Masks:
    """The masks of a safetensors file, all of them bool."""
    if file == Path():
        raise GradexError("--mask: found an empty name; name a file, or leave it out")
    try:
        masks = load_file(file)
    except FileNotFoundError:
        raise GradexError(f"--mask {file}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise GradexError(f"--mask {file}: not a safetensors file ({error})") from None
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            kind = str(mask.dtype).removeprefix("torch.")
            raise GradexError(f"--mask {file}: '{name}' is {kind}, expected bool")
    if not masks:
        raise GradexError(f"--mask {file}: holds no mask")
    return masks


def masked_parameters(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Mask -> the parameter it is of. A name may lack that of the adapter, as in adapter files."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    known = {_as_in_files(name): p for name, p in trained.items()}
    found = {}
    for name, mask in masks.items():
        if _as_in_files(name) not in known:
            near = get_close_matches(name, trained, n=1, cutoff=0.0)[0]
            raise GradexError(f"--mask: '{name}' is not trained here; the nearest name is '{near}'")
        parameter = found[name] = known[_as_in_files(name)]
        if parameter.shape != mask.shape:
            raise GradexError(
                f"--mask: '{name}' has the shape {tuple(mask.shape)}, the parameter "
                f"{tuple(parameter.shape)}"
            )
    if len(found) == len(trained) and not any(mask.any() for mask in masks.values()):
        raise GradexError("--mask: nothing may change, so that there is nothing to train")
    return found


def _as_in_files(name: str) -> str:
    return name.replace(f".{ADAPTER}", "")


class Masking(pl.Callback):
    """Comes before callbacks that look at the adapter or keep it."""

    def __init__(self, masks: Mapping[str, Tensor]):
        self.masks = masks

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # What lies off the mask is in a checkpoint as it was in the beginning.
        found = masked_parameters(module.model, self.masks)
        masks = {name: self.masks[name].to(p.device) for name, p in found.items()}
        self.kept = [(p, masks[name], p.detach().clone()) for name, p in found.items()]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        for parameter, mask, _ in self.kept:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        with torch.no_grad():
            for parameter, mask, begun in self.kept:
                parameter.copy_(torch.where(mask, parameter, begun))
