"""LoRA-GA: an adapter whose first step goes along the gradient of the full weights (Wang, Yu and
Li, 2024, algorithm 1).

Of the gradient G = U S V^T of the mean loss of calibration rows, with g = sqrt(out) / gamma:

    A0 = sqrt(g) V[:, :r]^T        B0 = sqrt(g) U[:, r:2r]        residual = W - s B0 A0

The first step of gradient descent then moves the weight by B0 B0^T G + G A0^T A0, which is g times
the best approximation of G in rank 2r. Here s = alpha / rank, as everywhere; the paper has
alpha / sqrt(rank), so that its alpha is ours over sqrt(rank).
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.adapters.beginning import Beginning
from gradex.adapters.inits import A_WEIGHT, Split, randomised_svd, split_off
from gradex.adapters.inputs import in_eval_mode
from gradex.adapters.residual import base_weight, lora_layers, take_out
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.losses import sample_objectives

NITER = 4  # power iterations of the gradient's decomposition, which is exact for small layers
log = logging.getLogger(__name__)


def start(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    gradients = weight_gradients(model, beginning)
    generator = torch.Generator().manual_seed(beginning.seed)
    for name, layer in lora_layers(model):
        weight = base_weight(layer)
        gradient = gradients.pop(name)
        a, b, _ = gradient_split(
            weight, gradient.T if layer.fan_in_fan_out else gradient, spec.rank, spec.alpha,
            gamma=spec.options["gamma"], generator=generator, where=name,
        )  # fmt: skip
        take_out(layer, a, b)


def gradient_split(
    weight: Float[Tensor, "out in"],
    gradient: Float[Tensor, "out in"],
    rank: int,
    alpha: float,
    *,
    gamma: float,
    generator: torch.Generator,
    where: str = A_WEIGHT,
) -> Split:
    """A, B and the residual; in float32, or in float64 where the weight is."""
    _require_twice(weight, rank, where=where)
    precise = weight if weight.dtype == torch.float64 else weight.float()
    u, s, vh = randomised_svd(gradient.to(precise), 2 * rank, niter=NITER, generator=generator)
    _warn_of_zeros(s, size=max(weight.shape), where=where)
    size = (len(weight) ** 0.5 / gamma) ** 0.5
    return split_off(precise, size * vh[:rank], size * u[:, rank:], scale=alpha / rank)


def weight_gradients(model: nn.Module, beginning: Beginning) -> dict[str, Float[Tensor, "..."]]:
    """Layer -> the gradient of the mean loss of all rows by its base weight, as that is kept; in
    float32 on the CPU, so that the model's device holds that of one layer at a time."""
    rows = sum(len(batch["labels"]) for batch in beginning.batches)
    with (
        in_eval_mode(model),
        model.disable_adapter(),
        _gathered(model) as gradients,
        torch.enable_grad(),
    ):
        for batch in beginning.batches:
            values, _ = sample_objectives(model, dict(batch), beginning.family)
            (values["loss"].sum() / rows).backward()
    _require_sound(gradients)
    return gradients


@contextmanager
def _gathered(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Sums of the gradients that a backward pass leaves at the base weights."""
    weights = {name: layer.get_base_layer().weight for name, layer in lora_layers(model)}
    sums = {
        name: torch.zeros(weight.shape, dtype=torch.float32) for name, weight in weights.items()
    }

    def gather(name: str, weight: nn.Parameter) -> None:
        sums[name] += weight.grad.float().cpu()
        weight.grad = None

    handles = [
        weight.requires_grad_(True).register_post_accumulate_grad_hook(partial(gather, name))
        for name, weight in weights.items()
    ]
    try:
        yield sums
    finally:
        for weight, handle in zip(weights.values(), handles, strict=True):
            handle.remove()
            weight.requires_grad_(False)


def _require_twice(weight: Tensor, rank: int, *, where: str) -> None:
    if 2 * rank > min(weight.shape):
        raise GradexError(
            f"{where}: a rank of {rank} takes {2 * rank} directions of the gradient, which has "
            f"only {min(weight.shape)}; ask for a lower --lora_r"
        )


def _require_sound(gradients: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise GradexError(
                f"{name}: the gradient of the calibration rows is not finite; look at these rows, "
                "or use another kind of adapter"
            )


def _warn_of_zeros(found: Tensor, *, size: int, where: str) -> None:
    """Few tokens give a gradient of low rank, and some layers none (attention over one token)."""
    sound = int((found > size * torch.finfo(found.dtype).eps * found[0]).sum())
    if sound < len(found):
        log.warning(
            "%s: the gradient of the calibration rows has a rank of %d, of which %d were asked "
            "for; the other directions are arbitrary; more --calib_rows help",
            where, sound, len(found),
        )  # fmt: skip
