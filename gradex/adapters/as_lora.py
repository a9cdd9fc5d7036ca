"""What an adapter adds to each weight of its base, as a low-rank product where it is one.

LoRA and its kin     s B A,  or s [B | -B0] [A; A0] where a part of the base was taken out
AdaLoRA              s B diag(E) A,  s = alpha / (init_r + 1e-5)   (Zhang et al., 2023)
VeRA                 diag(b) B diag(d) A                           (Kopiczko et al., 2024)
MiSS                 M^T F,  F[j, i] = 1 where i mod r = j         (Kang and Yin, 2024)

The update of any other kind that can be merged is the difference that merging makes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.adapters.factors import Factors
from gradex.adapters.residual import ADAPTER, TAKEN_A, WRAPPED
from gradex.errors import GradexError


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by their names in the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name.removeprefix(WRAPPED), module


@torch.no_grad()
def product_of(layer: Any, kind: str) -> Factors | None:
    """The layer's update; None where the kind gives no product, and merging has to tell it."""
    find = PRODUCTS.get(kind)
    return find(layer) if find else None


def _lora(layer: Any) -> Factors:
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    if hasattr(layer, TAKEN_A):
        a, b = torch.cat([a, layer.taken_A]), torch.cat([b, -layer.taken_B], dim=1)
    return Factors(a, b, float(layer.scaling[ADAPTER]))


def _adalora(layer: Any) -> Factors:
    a = layer.lora_E[ADAPTER] * layer.lora_A[ADAPTER]
    scale = layer.scaling[ADAPTER] / (float(layer.ranknum[ADAPTER]) + 1e-5)
    return Factors(a, layer.lora_B[ADAPTER], scale)


def _vera(layer: Any) -> Factors:
    a, b = layer.vera_A[ADAPTER], layer.vera_B[ADAPTER]
    d, scales = layer.vera_lambda_d[ADAPTER], layer.vera_lambda_b[ADAPTER]
    return Factors(
        d[:, None] * a[:, : layer.in_features].to(d),
        scales[:, None] * b[: layer.out_features].to(d),
    )


def _miss(layer: Any) -> Factors | None:
    block = layer.miss_block[ADAPTER]
    if block.dim() == 3:  # bone: W M + M, which is no product of two small matrices
        return None
    rank, columns = block.shape
    fold = torch.eye(rank).repeat(1, -(-layer.in_features // rank))[:, : layer.in_features]
    return Factors(fold.to(block), block.T.repeat(layer.out_features // columns, 1))


PRODUCTS: dict[str, Callable[[Any], Factors | None]] = {
    "LORA": _lora,
    "ADALORA": _adalora,
    "VERA": _vera,
    "MISS": _miss,
}


@torch.no_grad()
def update_of(layer: Any, *, name: str) -> Float[Tensor, "out in"]:
    """What merging adds to the layer's weight; the layer is merged afterwards."""
    base = layer.get_base_layer()
    bias = None if base.bias is None else base.bias.detach().clone()
    # In float64, so that the difference has all digits of the update.
    before = base.weight.data.double()
    base.weight.data = before.clone()
    layer.merge()
    if bias is not None and not torch.equal(bias, base.bias):
        raise GradexError(f"{name}: the adapter changes its bias, which a LoRA cannot")
    update = (base.weight.data - before).float()
    return update.T if type(base).__name__ == "Conv1D" else update
