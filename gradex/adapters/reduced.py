"""A LoRA folder with fewer components in every layer: a plain peft adapter again.

The layers' ranks and alphas stand in `rank_pattern` and `alpha_pattern`; what is no LoRA matrix of
a linear layer (a classifier's head, a bias) stays as it is. An adapter that began from a part of
its base is a LoRA of twice the rank on disk (see residual), and it is this one that is reduced: all
that it adds to the base as it was, held against the weights of the base as it was. What comes out
has no halves any more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradex.adapters.folder import SETTINGS, SETTINGS_OF, WEIGHTS, WHOLE
from gradex.adapters.halves import pair_keys
from gradex.adapters.norm import Reduced, Rule, reduce_update
from gradex.adapters.residual import ADAPTER, WRAPPED, base_weight, lora_layers
from gradex.errors import GradexError
from gradex.records import read_json, write_json

Scale = Literal["preserve", "authors"]
# Beginnings that leave the base as it was; after others peft changes it when the folder is loaded.
HARMLESS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
OF_A_BEGINNING = ("eva_config", "corda_config", "lora_ga_config")
NO_PRODUCT = (
    "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config",
    "layer_replication", "target_parameters",
)  # fmt: skip
CONVERT = "make a plain LoRA of it first: `gradex convert --to lora`"
INSTEAD = {"ADALORA": CONVERT, "MISS": CONVERT, "BONE": CONVERT}


@dataclass(frozen=True)
class ReducedLayer:
    """A layer by its name in the base model, with its rank and parameters before and after."""

    layer: str
    rank: int
    kept: int
    overlap: float
    overlap_whole: float
    energy: float
    parameters: int
    parameters_kept: int


def require_lora(folder: Path) -> dict[str, Any]:
    """The settings of an adapter that is a sum of products B A; others are refused."""
    if (folder / WHOLE).is_file() and not (folder / SETTINGS).exists():
        raise GradexError(f"{folder}: all weights of the model were trained, expected a LoRA")
    settings = read_json(folder / SETTINGS, SETTINGS_OF, {"peft_type": str})
    kind = settings["peft_type"]
    if kind != "LORA":
        todo = INSTEAD.get(kind, "train one with --adapter lora")
        raise GradexError(f"{folder}: found an adapter of the kind {kind}, expected LoRA; {todo}")
    if settings.get("use_dora"):
        raise GradexError(
            f"{folder}: found DoRA, whose magnitudes are no product of two matrices, expected "
            "LoRA; merge it as it is (`gradex merge`), or train with --adapter lora"
        )
    for name in NO_PRODUCT:
        if settings.get(name):
            raise GradexError(
                f"{folder}: found a LoRA with {name}, expected one without; {CONVERT}"
            )
    began = settings.get("init_lora_weights")
    if began not in HARMLESS:
        raise GradexError(
            f"{folder}: the adapter began from a part of its base (init_lora_weights is "
            f"{began!r:.40}), which peft takes out when it is loaded; {CONVERT}"
        )
    return settings


def reduce_adapter(
    model: nn.Module, folder: Path, out: Path, *, rule: Rule, scale: Scale, seed: int
) -> list[ReducedLayer]:
    """Write the adapter of `folder`, which `model` has on its base, to `out` with the components
    that the rule keeps.

    `preserve` keeps what each component adds; `authors` adds B A as it is, without alpha / rank,
    as the published code does when it merges: alpha 32 at rank 16 is halved.
    """
    settings, tensors = require_lora(folder), load_file(folder / WEIGHTS)
    lines: list[ReducedLayer] = []
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for number, (name, layer) in enumerate(lora_layers(model)):
        found = _reduced(name, layer, tensors, rule, seed=seed + number)
        short = name.removeprefix(WRAPPED)
        lines.append(_line(short, layer, found))
        ranks[short], alphas[short] = found.rank, _alpha(layer, found.rank, scale)
        tensors |= dict(zip(pair_keys(name), (found.a, found.b), strict=True))
    if not lines:
        raise GradexError(f"{folder}: found no linear layer with LoRA matrices")
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    write_json(out / SETTINGS, _settings(settings, ranks, alphas))
    return lines


def _reduced(
    name: str, layer: Any, tensors: Mapping[str, Tensor], rule: Rule, *, seed: int
) -> Reduced:
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        kind = type(layer.get_base_layer()).__name__
        raise GradexError(f"{name}: found a layer of the kind {kind}, expected a linear one with a "
                          "weight that is not quantised")  # fmt: skip
    a, b = (tensors[key] for key in pair_keys(name))
    try:
        with torch.no_grad():
            return reduce_update(
                a, b, base_weight(layer), rule=rule, scale=layer.scaling[ADAPTER], seed=seed
            )
    except GradexError as error:
        raise GradexError(f"{name}: {error}") from None


def _line(name: str, layer: Any, found: Reduced) -> ReducedLayer:
    rank, size = layer.r[ADAPTER], sum(base_weight(layer).shape)
    return ReducedLayer(
        name, rank, found.rank, found.overlap, found.overlap_whole, found.energy,
        parameters=rank * size, parameters_kept=found.rank * size,
    )  # fmt: skip


def _alpha(layer: Any, kept: int, scale: Scale) -> float:
    """The alpha that gives a component its old weight, or the weight 1, at the new rank."""
    rank, alpha = layer.r[ADAPTER], layer.lora_alpha[ADAPTER]
    by = math.sqrt if layer.use_rslora[ADAPTER] else float
    return by(kept) if scale == "authors" else alpha * by(kept / rank)


def _settings(
    settings: Mapping[str, Any], ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """peft takes the first name that ends like a layer's: longer ones stand first, and all of them
    before those that the folder had."""
    order = sorted(ranks, key=lambda name: (-len(name), name))
    patterns = {
        "rank_pattern": {name: ranks[name] for name in order},
        "alpha_pattern": {name: alphas[name] for name in order},
    }
    merged = {key: new | _rest(settings.get(key), new) for key, new in patterns.items()}
    return {**settings, **dict.fromkeys(OF_A_BEGINNING), **merged, "init_lora_weights": True}


def _rest(before: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (before or {}).items() if key not in new}
