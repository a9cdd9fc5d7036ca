"""Adapters that begin from a part of the base: the weight below each keeps only the residual.

    W = residual + s B0 A0,      trained: residual + s B A

Each layer keeps A0 and B0, so that the trained adapter can be carried home to the base as it was,
exactly and as a plain LoRA of twice the rank:

    residual + s B A = W + s [B | -B0] [A; A0]

Such a folder loads on the original base with peft alone. Its `gradex.json` says that the second
half is what was taken out, so that here it is taken apart again: training and gradients see A and B
only.

A residual is rounded to the base's dtype: in float32 the identities hold to 1e-6 of the weights,
in bfloat16 to the 1/256 of an entry that it has. Taking out the same (A0, B0) again gives the very
same residual; peft alone, on the base as it was, differs from the trained model by this rounding.

On another base than its own, such an adapter is wrong without a sign of it. Marks of the weights
tell them apart.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor, nn

from gradex.errors import GradexError
from gradex.models.load import bare

ADAPTER = "default"
TAKEN_A, TAKEN_B = "taken_A", "taken_B"  # buffers of a layer: what was taken out of its base
WRAPPED = "base_model.model."  # what peft puts before the names of the base's layers
MARKED = 4096  # about so many entries of a weight are looked at
Marks = dict[str, str]  # layer of the base -> mark of its weight


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The linear layers with LoRA matrices, by their names."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def base_weight(layer: Any) -> Float[Tensor, "out in"]:
    """A view of the weight below an adapter, whichever way round the layer keeps it."""
    weight = layer.get_base_layer().weight.data
    return weight.T if layer.fan_in_fan_out else weight


@torch.no_grad()
def take_out(layer: Any, a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"]) -> None:
    """Begin the layer's adapter from A0 and B0, and leave the rest to the weight below it."""
    weight = base_weight(layer)
    layer.taken_from = mark(layer.get_base_layer().weight.data)
    matrices = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    for matrix, begun in zip(matrices, (a, b), strict=True):
        matrix.data.copy_(begun)
    # As they are kept, so that a training that goes on from them finds the very same residual.
    kept_a, kept_b = (matrix.detach().clone() for matrix in matrices)
    product = layer.scaling[ADAPTER] * kept_b.to(_precise(weight)) @ kept_a.to(_precise(weight))
    weight.copy_(weight.to(product.dtype) - product)
    layer.register_buffer(TAKEN_A, kept_a, persistent=False)
    layer.register_buffer(TAKEN_B, kept_b, persistent=False)


def _precise(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def taken_out(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (A0, B0); empty for an adapter that leaves its base as it is."""
    return {
        name: (layer.taken_A, layer.taken_B)
        for name, layer in lora_layers(model)
        if hasattr(layer, TAKEN_A)
    }


def own_marks(model: nn.Module) -> Marks:
    """Of the base as it was before anything was taken out of it."""
    return {
        name.removeprefix(WRAPPED): layer.taken_from
        for name, layer in lora_layers(model)
        if hasattr(layer, TAKEN_A)
    }


def residual_marks(model: nn.Module) -> Marks:
    """Of what is left of these weights."""
    layers = dict(lora_layers(model))
    return {
        name: mark(layers[f"{WRAPPED}{name}"].get_base_layer().weight.data)
        for name in own_marks(model)
    }


def mark(weight: Float[Tensor, "..."]) -> str:
    """A hash of a sample of the weight's entries, rounded to bfloat16: a base that is loaded in
    half precision has the marks that it has in single."""
    entries = weight.detach().reshape(-1)
    step = len(entries) // MARKED | 1  # odd, not to stay in one column
    sample = entries[::step].to(torch.bfloat16)
    return xxhash.xxh3_64_hexdigest(sample.view(torch.int16).cpu().numpy().tobytes())


def require_marked(model: nn.Module, marks: Mapping[str, Any], *, where: str) -> None:
    """Refuse a base whose weights are not those that an adapter was made for."""
    base = bare(model)
    layers = dict(base.named_modules())
    for name, expected in marks.items():
        weight = getattr(layers.get(name), "weight", None)
        if not isinstance(weight, Tensor) or mark(weight) != expected:
            raise GradexError(
                f"{where}: the adapter belongs to another base model (see the weight of {name}); "
                "name the base that it was made for"
            )
