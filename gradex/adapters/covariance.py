"""What the layers of a model are given on calibration rows: two sums over samples, in one pass.

    covariance: mean over samples of (X / |max X|)^T (X / |max X|)     (CorDA: Yang et al., 2024)
    magnitude:  mean over samples of the mean over tokens of |x|       (ASVD: Yuan et al., 2023)

X (token, in) is a layer's input for one sample, and max X its largest entry, as in the published
code (not the largest |entry|; an X whose largest entry is 0 is taken as it is). Rows come in padded
batches, of which each layer's sums leave the padding out: the numbers are those of one row at a
time. Sums are float32, or float64 where the model is. They lie in the host's memory, 4 in^2 bytes a
layer, so that the device holds the product of one layer at a time beside the model.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradex.adapters.inputs import in_eval_mode, told_apart, watching
from gradex.data.tokens import IGNORED, Batch, Family
from gradex.errors import GradexError
from gradex.models.losses import label_logits
from gradex.progress import progress

Masks = list[Bool[Tensor, "sample _"]]  # one for each stream of tokens in the model


class Context(NamedTuple):
    """What one layer sees."""

    covariance: Float[Tensor, "in in"]
    magnitude: Float[Tensor, " in"]


def collect(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], family: Family
) -> dict[str, Context]:
    """The context of every layer on the batches; the model is as it was afterwards."""
    if not batches:
        raise GradexError("no calibration row; an adapter that begins from rows needs some")
    sums = {name: _Sums() for name in layers}
    masks: Masks = []

    def note(name: str, inputs: Tensor) -> None:
        sums[name].add(*_by_sample(name, inputs, masks))

    with torch.no_grad(), in_eval_mode(model), watching(layers, note):
        with progress("covariances", len(batches), unit="batch") as bar:
            for batch in batches:
                batch = told_apart(batch, family)
                masks[:] = _masks(batch, family)
                label_logits(model, batch, family)
                bar.update()
    return {name: found.context(name) for name, found in sums.items()}


class _Sums:
    """Over the samples that a layer has seen."""

    def __init__(self) -> None:
        self.samples = 0
        self.covariance: Tensor | float = 0.0
        self.magnitude: Tensor | float = 0.0

    def add(
        self, inputs: Float[Tensor, "sample token in"], mask: Bool[Tensor, "sample token"]
    ) -> None:
        real = mask[..., None]
        x = inputs if inputs.dtype == torch.float64 else inputs.float()
        top = x.masked_fill(~real, -torch.inf).amax(dim=(1, 2)).abs()
        x = torch.where(real, x, 0.0)
        counts = mask.sum(1).clamp(min=1)
        self.magnitude = self.magnitude + (x.abs().sum(1) / counts[:, None]).sum(0).cpu()
        x = (x / torch.where(top > 0, top, 1.0)[:, None, None]).flatten(0, 1)
        self.covariance = self.covariance + (x.T @ x).cpu()
        self.samples += len(inputs)

    def context(self, name: str) -> Context:
        if not self.samples:
            raise GradexError(
                f"{name}: no calibration row reaches this layer; leave it out with "
                "--lora_target_modules"
            )
        found = Context(self.covariance / self.samples, self.magnitude / self.samples)
        if not all(torch.isfinite(part).all() for part in found):
            raise GradexError(
                f"{name}: its inputs on the calibration rows are not finite; the base model cannot "
                "compute in this dtype"
            )
        return found


def _masks(batch: Batch, family: Family) -> Masks:
    """The real tokens of each stream; a decoder reads its labels, moved by one place."""
    text = batch["attention_mask"].bool()
    return [text, batch["labels"] != IGNORED] if family == "seq2seq" else [text]


def _by_sample(
    name: str, inputs: Tensor, masks: Masks
) -> tuple[Float[Tensor, "sample token in"], Bool[Tensor, "sample token"]]:
    """Inputs and real tokens by sample; an input without tokens is one token of each."""
    shape = inputs.shape[:-1]
    for mask in masks:
        if shape in (mask.shape, (mask.numel(),)):
            return inputs.reshape(*mask.shape, -1), mask
    if shape == (len(masks[0]),):
        return inputs[:, None], torch.ones_like(masks[0][:, :1])
    raise GradexError(
        f"{name}: is given {tuple(shape)} vectors for {len(masks[0])} rows, expected them by row "
        "and token; leave this layer out with --lora_target_modules"
    )
