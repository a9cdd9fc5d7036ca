"""Any adapter whose updates are of low rank, or can be cut to one, as a plain LoRA of its base."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradex.adapters.agreement import Agreement, answers, compare, probe
from gradex.adapters.as_lora import adapted_layers, product_of, update_of
from gradex.adapters.factors import Cut, Factors, Target, cut_matrix, cut_product
from gradex.adapters.folder import (
    ADAPTER,
    SETTINGS,
    SETTINGS_OF,
    WEIGHTS,
    load,
    load_all,
)
from gradex.adapters.foreign import load_with_initial, require_own_base, require_whole_base
from gradex.adapters.halves import pair_keys
from gradex.adapters.merge import class_names_of, require_changed_weights
from gradex.adapters.residual import WRAPPED
from gradex.errors import GradexError, first_line
from gradex.models.encoding import on_best_device
from gradex.models.load import Base, BaseSpec, load_base
from gradex.records import read_json, write_json

LAYERS = ("Linear", "Conv1D")
PLAIN = ("MiCALinearVariant",)  # what peft calls a variant of LoRA although its update is B A


@dataclass(frozen=True)
class Conversion:
    """Layer -> its update, those that are zero left out; `sizes` count the numbers that are kept
    for all of them before and after."""

    layers: dict[str, Cut]
    agreement: Agreement
    sizes: tuple[int, int]

    @property
    def error(self) -> float:
        """Of all layers together, relative, in the Frobenius norm."""
        total = sum(cut.total for cut in self.layers.values())
        return (sum(cut.lost for cut in self.layers.values()) / total) ** 0.5 if total else 0.0


def write_lora(
    spec: BaseSpec, adapter: Path, folder: Path, *, target: Target, initial: Path | None = None
) -> Conversion:
    """The adapter as a plain LoRA in `folder`, which peft reads back and which is compared with it
    on the base. An error where the two differ although nothing was cut off."""
    _require_convertible(adapter)
    require_whole_base(spec.path)
    labels = class_names_of(adapter)
    base = on_best_device(load_base(spec, labels=labels))
    inputs = probe(base)
    plain = answers(base.model, inputs, of=spec.path)
    model = _with_adapter(base, adapter, initial)
    wanted = answers(model, inputs, of=adapter)
    cuts = _write(model, adapter, folder, target, base_path=spec.source)
    del base, model  # two models at once need not fit
    again = on_best_device(load_base(spec, labels=labels))
    found = answers(load_all(again, {ADAPTER: folder}), inputs, of=folder)
    agreement = compare(found, wanted, plain, dtype=spec.dtype)
    if target.is_exact:
        agreement.require(f"{adapter}: as a LoRA")
    return Conversion(cuts, agreement, (_size(adapter), _size(folder)))


def _require_convertible(adapter: Path) -> None:
    if not (adapter / SETTINGS).exists():
        raise GradexError(
            f"{adapter}: all weights of the model were trained, there is no adapter to convert; "
            "`gradex merge` gives a plain model"
        )
    require_changed_weights(adapter)
    settings = read_json(adapter / SETTINGS, SETTINGS_OF)
    reason = _why_not(settings)
    if reason:
        raise GradexError(f"{adapter}: {reason}; use `gradex merge`, which keeps all of it")


def _why_not(settings: Mapping[str, Any]) -> str | None:
    """Why there is no LoRA that says the same, as far as the settings tell it."""
    if settings.get("use_dora"):
        return (
            "DoRA scales every row of the base's weights by a magnitude, and that change is not "
            "of low rank"
        )
    if settings.get("peft_type") == "IA3":
        return "(IA)^3 scales whole rows or columns of the base's weights, and biases with them"
    if settings.get("bias", "none") != "none" or settings.get("lora_bias"):
        return "biases were trained with it, which a plain LoRA has none of"
    for key in ("trainable_token_indices", "target_parameters"):
        if settings.get(key):
            return f"its settings have {key}, which a plain LoRA has none of"
    return None


def _with_adapter(base: Base, adapter: Path, initial: Path | None) -> nn.Module:
    if initial is not None:
        return load_with_initial(base, adapter, initial)
    require_own_base(adapter)
    return load(base, adapter)


def _write(
    model: nn.Module, adapter: Path, folder: Path, target: Target, *, base_path: str
) -> dict[str, Cut]:
    """The folder of the LoRA; returns layer -> its update, those that are zero left out."""
    cuts = {name: cut for name, cut in _cuts(model, target) if cut.factors.rank}
    if not cuts:
        raise GradexError(f"{adapter}: the adapter changes nothing; there is no LoRA to write")
    tensors = _other_tensors(adapter, model)
    for name, cut in cuts.items():
        key_a, key_b = pair_keys(WRAPPED + name)
        tensors |= {key_a: _stored(cut.factors.a), key_b: _stored(cut.factors.b)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    layers = {name: cut.factors for name, cut in cuts.items()}
    settings = _settings(adapter, model, layers)
    write_json(folder / SETTINGS, settings | {"base_model_name_or_path": base_path})
    return cuts


def _stored(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", torch.float32).contiguous()


def _cuts(model: nn.Module, target: Target) -> Iterator[tuple[str, Cut]]:
    kind = model.peft_config[ADAPTER].peft_type.value
    found = list(adapted_layers(model))
    if not found:
        raise GradexError(
            f"an adapter of the type {kind} adds nothing to the weights of layers, so that no LoRA "
            "can say the same; use it with peft on its base"
        )
    for name, layer in found:
        _require_plain(name, layer, kind)
        yield name, _cut(layer, kind, target, name=name)


def _require_plain(name: str, layer: Any, kind: str) -> None:
    below = type(layer.get_base_layer()).__name__
    if below not in LAYERS:
        raise GradexError(f"{name}: adapted is a {below}, expected one of {', '.join(LAYERS)}")
    variant = type(getattr(layer, "lora_variant", {}).get(ADAPTER)).__name__
    if kind == "LORA" and variant not in ("NoneType", *PLAIN):
        raise GradexError(
            f"{name}: {variant} is more than a product of two matrices; use "
            "`gradex merge`, which keeps all of it"
        )


def _cut(layer: Any, kind: str, target: Target, *, name: str) -> Cut:
    product = product_of(layer, kind)
    if product is None:
        return cut_matrix(_update(layer, kind, name=name), target)
    if not target.is_exact:
        return cut_product(product, target)
    size = float(product.update().detach().square().sum()) if product.rank else 0.0
    return Cut(product, lost=0.0, total=size)


def _update(layer: Any, kind: str, *, name: str) -> Tensor:
    try:
        return update_of(layer, name=name)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        # What peft's types that have no change of weights to tell of answer with.
        raise GradexError(
            f"{name}: an adapter of the type {kind} is no change of weights that a LoRA could make;"
            f" use it with peft on its base ({first_line(error)})"
        ) from None


def _settings(adapter: Path, model: nn.Module, layers: Mapping[str, Factors]) -> dict[str, Any]:
    """Those of a LoRA that is no longer trained: the most frequent rank and alpha, and the other
    ones by layer."""
    from peft import LoraConfig

    before = read_json(adapter / SETTINGS, SETTINGS_OF)
    ranks = {name: factors.rank for name, factors in layers.items()}
    alphas = {name: factors.scale * factors.rank for name, factors in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        alpha_pattern={name: own for name, own in alphas.items() if own != alpha},
        target_modules=_short_names(model, layers),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        task_type=before.get("task_type"),
        modules_to_save=before.get("modules_to_save"),
        inference_mode=True,
    )
    return {
        key: sorted(value) if isinstance(value, set | list) else value
        for key, value in (config.to_dict() | {"peft_type": "LORA"}).items()
    }


def _short_names(model: nn.Module, layers: Mapping[str, Factors]) -> list[str]:
    """The last parts of the layers' names, where they name no other layer; else all of them."""
    last = {name.rsplit(".", 1)[-1] for name in layers}
    everywhere = {name for name, _ in model.get_base_model().named_modules()}
    named = {name for name in everywhere if name.rsplit(".", 1)[-1] in last}
    return sorted(last if named == set(layers) else layers)


def _other_tensors(adapter: Path, model: nn.Module) -> dict[str, Tensor]:
    """What was saved whole beside the adapter: a classifier's head."""
    names = [WRAPPED + name for name, _ in adapted_layers(model)]
    saved = read_json(adapter / SETTINGS, SETTINGS_OF).get("modules_to_save") or []
    return {
        key: tensor
        for key, tensor in load_file(adapter / WEIGHTS).items()
        if set(saved) & set(key.split(".")) and not key.startswith(tuple(f"{n}." for n in names))
    }


def _size(folder: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(folder / WEIGHTS).values())
