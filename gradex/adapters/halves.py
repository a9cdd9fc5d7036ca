"""Adapters that began from a part of their base, as one LoRA of twice the rank: its two halves.

    [A; A0] and [B | -B0],   of which A and B are what is trained (see residual)

On disk they are one, so that the folder loads on the base as it was; here they are taken apart.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradex.adapters.residual import lora_layers, take_out
from gradex.errors import GradexError, first_line

Pair = tuple[Tensor, Tensor]  # A and B of a layer


def pair_keys(layer: str) -> tuple[str, str]:
    """What A and B of a layer are called in an adapter's file."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


def double(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of twice the rank at the same scale, begun from what is in the file."""
    return {
        **settings,
        "r": 2 * settings["r"],
        "lora_alpha": 2 * settings["lora_alpha"],
        "init_lora_weights": True,
    }


def halve(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "r": settings["r"] // 2, "lora_alpha": settings["lora_alpha"] / 2}


def joined(tensors: Mapping[str, Tensor], taken: Mapping[str, Pair]) -> dict[str, Tensor]:
    """The trained tensors with what was taken out of the base as second halves."""
    found = dict(tensors)
    for name, (a, b) in taken.items():
        key_a, key_b = pair_keys(name)
        found[key_a] = torch.cat([tensors[key_a], a.cpu()])
        found[key_b] = torch.cat([tensors[key_b], -b.cpu()], dim=1).contiguous()
    return found


def first_halves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is trained; what is no LoRA matrix (a classifier's head) as it is."""
    return {
        name: _halves(name, tensor)[0].contiguous() if ".lora_" in name else tensor
        for name, tensor in tensors.items()
    }


def taken_pair(tensors: Mapping[str, Tensor], layer: str) -> Pair:
    """A0 and B0 of a layer."""
    (_, a), (_, minus_b) = (_halves(key, tensors[key]) for key in pair_keys(layer))
    return a, -minus_b


def _halves(name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.chunk(2, dim=0 if ".lora_A." in name else 1)


def load_on_residual(
    model: nn.Module,
    settings: Mapping[str, Any],
    trained: Mapping[str, Tensor],
    *,
    taken: Callable[[str, Any], Pair],
    where: Path,
) -> nn.Module:
    """The base with a LoRA of the settings: of every layer (by name and module) what `taken` says
    is taken out of the base, and the trained tensors are set."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    settings = {
        **settings,
        "inference_mode": False,
        "base_model_name_or_path": None,  # which peft would hold against where this base lies
    }
    try:
        with torch.random.fork_rng(devices=[]):
            model = get_peft_model(model, PeftConfig.from_peft_type(**settings))
        for name, layer in lora_layers(model):
            take_out(layer, *taken(name, layer))
        set_peft_model_state_dict(model, dict(trained))
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        told = first_line(error)
        raise GradexError(f"{where}: the adapter does not fit this base model ({told})") from None
    return model
