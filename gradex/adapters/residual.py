"""Adapters that begin from a part of the base: the weight below each keeps only the residual.

    W = residual + s B0 A0,      trained: residual + s B A

Each layer keeps A0 and B0, so that the trained adapter can be carried home to the base as it was,
exactly and as a plain LoRA of twice the rank:

    residual + s B A = W + s [B | -B0] [A; A0]

Such a folder loads on the original base with peft alone. Its `gradex.json` says that the second
half is what was taken out, so that here it is taken apart again: training and gradients see A and B
only.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ADAPTER = "default"
TAKEN_A, TAKEN_B = "taken_A", "taken_B"  # buffers of a layer: what was taken out of its base


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
