"""Per-sample gradients of one layer's parameters, in closed form, one short function a parameter.

With x_t a layer's input, y_t its output and g_t the gradient of a sample's objective at that
output, token t, every formula below is a sum over the sample's tokens:

    Linear            dW = g x^T                      db = g
    LoRA and its initialisations: A and B are Linear layers (Hu et al., 2021)
    DoRA              dm = g * (y - bias) / m         its norm is held constant (Liu et al., 2024)
    AdaLoRA           h = A x, q = B^T g:  dA = s (E * q) x^T,  dB = s g (E * h)^T,  dE = s q * h
                      without the orthogonality penalty, which no row has a part in
    MiSS              dM = fold(x) g^T                x folded over chunks of r (Kang and Yin, 2024)
    Bone (bat)        G = g x^T in blocks of r x r:  dM_o = sum_k (W_ok^T G_ok + G_ok)
    VeRA              u = A x:  db = g * B (d * u),  dd = u * B^T (b * g)   (Kopiczko et al., 2024)
    (IA)^3            y = l * (W x + b):  dl = g * y / l;  y = W (l * x):  dl = x * W^T g

(AdaLoRA: Zhang et al., 2023; (IA)^3: Liu et al., 2022.) Any other layer is differentiated alone,
for all samples at once (`LayerAlone`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

# A layer, its adapter's name, its input (or output) and the gradient at its output, in float32.
Formula = Callable[[Any, str, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """How the parameter below `attribute` of a layer gets its gradient, and from what."""

    attribute: str
    formula: Formula
    reads: Literal["input", "output"] = "input"


def linear_weight(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    return outer(g, x)


def outer(left: Tensor, right: Tensor) -> Float[Tensor, "sample left right"]:
    """sum_t left_t right_t^T. Products are three times faster with the narrow side first."""
    if left.shape[-1] <= right.shape[-1]:
        return torch.bmm(left.mT, right)
    return torch.bmm(right.mT, left).mT


def transposed_weight(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    """GPT-2's Conv1D keeps its weight as (in, out)."""
    return outer(x, g)


def added_bias(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    return g.sum(1)


def dora_magnitude(layer: Any, adapter: str, y: Tensor, g: Tensor) -> Tensor:
    bias = getattr(layer.get_base_layer(), "bias", None)
    linear = y if bias is None else y - bias.float()
    return (g * linear).sum(1) / layer.lora_magnitude_vector[adapter].weight.float()


def adalora_a(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    q = g @ layer.lora_B[adapter].float() * layer.lora_E[adapter].float().T
    return _adalora_scale(layer, adapter) * outer(q, x)


def adalora_b(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    h = x @ (layer.lora_A[adapter] * layer.lora_E[adapter]).float().T
    return _adalora_scale(layer, adapter) * outer(g, h)


def adalora_e(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    h, q = x @ layer.lora_A[adapter].float().T, g @ layer.lora_B[adapter].float()
    return _adalora_scale(layer, adapter) * (h * q).sum(1).unsqueeze(-1)


def _adalora_scale(layer: Any, adapter: str) -> float | Tensor:
    return layer.scaling[adapter] / (layer.ranknum[adapter] + 1e-5)


def miss_block(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    if layer.miss_fn == "bat":
        return torch.stack([_bone(layer, adapter, *pair) for pair in zip(x, g, strict=True)])
    rank, width = layer.miss_block[adapter].shape
    padded = nn.functional.pad(x, (0, -x.shape[-1] % rank))
    folded = padded.unflatten(-1, (-1, rank)).sum(-2)
    whole = outer(folded, g)
    # MiSS mini repeats its block along the outputs: the copies' gradients add up.
    return whole.unflatten(-1, (-1, width)).sum(-2)


def _bone(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    """One sample at a time: its full weight gradient is as large as the weight."""
    blocks, rank, _ = layer.miss_block[adapter].shape
    weight = layer.get_base_weight().float().view(blocks, rank, -1, rank)
    whole = (g.T @ x).view(blocks, rank, -1, rank)
    return torch.einsum("oikj,oikl->ojl", weight, whole) + whole.sum(2)


def vera_b(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    a, b = _vera_matrices(layer, adapter)
    return (g * (x @ a.T * layer.vera_lambda_d[adapter].float() @ b.T)).sum(1)


def vera_d(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    a, b = _vera_matrices(layer, adapter)
    return ((x @ a.T) * (g * layer.vera_lambda_b[adapter].float() @ b)).sum(1)


def _vera_matrices(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    a, b = layer.vera_A[adapter], layer.vera_B[adapter]
    device = layer.vera_lambda_d[adapter].device
    a, b = a[:, : layer.in_features], b[: layer.out_features]
    return a.to(device).float(), b.to(device).float()


def ia3_outputs(layer: Any, adapter: str, y: Tensor, g: Tensor) -> Tensor:
    scale = layer.ia3_l[adapter]
    return ((g * y).sum(1) / scale.float().flatten()).view(-1, *scale.shape)


def ia3_inputs(layer: Any, adapter: str, x: Tensor, g: Tensor) -> Tensor:
    weight = layer.get_base_layer().weight.float()
    weight = weight.T if layer.fan_in_fan_out else weight
    return (x * (g @ weight)).sum(1).view(-1, *layer.ia3_l[adapter].shape)


def rules_of(layer: nn.Module) -> list[Rule]:
    """The formulas that hold for a layer, by the attribute that their parameter lies under."""
    from peft.tuners import adalora, ia3, lora, miss, vera
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, nn.Linear):
        return [Rule("weight", linear_weight), Rule("bias", added_bias)]
    if isinstance(layer, Conv1D):
        return [Rule("weight", transposed_weight), Rule("bias", added_bias)]
    if isinstance(layer, nn.LayerNorm):
        return [Rule("bias", added_bias)]
    if isinstance(layer, adalora.SVDLinear):
        formulas = (("lora_A", adalora_a), ("lora_B", adalora_b), ("lora_E", adalora_e))
        return [Rule(name, formula) for name, formula in formulas]
    if isinstance(layer, miss.MissLinear):
        return [Rule("miss_block", miss_block)]
    if isinstance(layer, vera.Linear):
        return [Rule("vera_lambda_b", vera_b), Rule("vera_lambda_d", vera_d)]
    if isinstance(layer, ia3.Linear):
        if layer.is_feedforward:
            return [Rule("ia3_l", ia3_inputs)]
        return [Rule("ia3_l", ia3_outputs, "output")] if _no_zero(layer.ia3_l) else []
    if isinstance(layer, lora.LoraLayer) and type(layer).__name__.startswith("Linear"):
        norms = [m.weight for m in layer.lora_magnitude_vector.values()]
        known = bool(norms) and all(bool((m != 0).all()) for m in norms)
        return [Rule("lora_magnitude_vector", dora_magnitude, "output")] if known else []
    return []


def _no_zero(parameters: nn.ParameterDict) -> bool:
    """Whether y / l is defined: otherwise the layer is differentiated alone."""
    return all(bool((parameter != 0).all()) for parameter in parameters.values())


@dataclass
class LayerAlone:
    """The gradient of a layer without a formula: the layer runs again, by itself.

    Once for all samples with `vmap`; sample by sample where the layer's code refuses that.
    """

    keys: Sequence[str]
    way: str = "vmap"

    def __call__(self, layer: nn.Module, x: Tensor, g: Tensor) -> Iterator[Tensor]:
        """The gradients of the parameters under `keys`, in their order."""
        chosen = {key: layer.get_parameter(key).detach() for key in self.keys}

        def value(parameters: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
            out = functional_call(layer, parameters, (x.unsqueeze(0),))
            return (out.squeeze(0) * g).float().sum()

        found = self._by_vmap(value, chosen, x, g) if self.way == "vmap" else None
        if found is None:
            each = [_slopes(value, chosen, *pair) for pair in zip(x, g, strict=True)]
            found = {key: torch.stack([one[key] for one in each]) for key in self.keys}
        return (found[key].float() for key in self.keys)

    def _by_vmap(
        self, value: Callable, chosen: dict[str, Tensor], x: Tensor, g: Tensor
    ) -> dict[str, Tensor] | None:
        try:
            return vmap(grad(value), in_dims=(None, 0, 0))(chosen, x, g)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # what vmap has no rule for, or data-dependent control flow
            self.way = "loop"
            return None


def _slopes(value: Callable, chosen: dict[str, Tensor], x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """One sample's gradients by plain autograd, which takes layers that torch.func does not."""
    leaves = {key: parameter.clone().requires_grad_() for key, parameter in chosen.items()}
    with torch.enable_grad():
        whole = value(leaves, x, g)
    found = torch.autograd.grad(
        whole, list(leaves.values()), materialize_grads=True, allow_unused=True
    )
    return dict(zip(leaves, found, strict=True))
