"""Adapters of every kind on the tiny models, as folders, as if they had been trained."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from adapting import shaken
from torch import nn

from gradex.adapters.attach import attach
from gradex.adapters.folder import export
from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.models.load import Base, BaseSpec, load_base

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq"}
# peft has no MiSS for GPT-2's Conv1D.
PAIRS = [(k, m) for k in KINDS for m in FAMILIES if m != "gpt2" or KINDS[k].conv1d]


def spec_of(kind: str, *, rank: int = 4) -> AdapterSpec:
    return AdapterSpec(kind=kind, rank=rank, alpha=6.0, options=parse_options(kind, []))


def make_trained(
    folder: Path, place: Path, kind: str, batch: Mapping, *, labels: list[str] | None = None
) -> nn.Module:
    """A trained adapter of the kind on the base in `place`, which is exported to `folder`."""
    base = load_base(BaseSpec(str(place)), labels=labels)
    model = shaken(attach(base, spec_of(kind), seed=0, steps=4, batches=[batch]))
    export(model, folder, base_path=str(place), card=None)
    return model


def make_peft(
    folder: Path, place: Path, config, *, then: Callable[[nn.Module], object] = lambda _: None
) -> nn.Module:
    """The same by peft alone, from a config of its own."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load_base(BaseSpec(str(place))).model, config)
    model.peft_config["default"].base_model_name_or_path = str(place)
    then(model)
    shaken(model)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


def logits(model: nn.Module, family: str = "causal") -> torch.Tensor:
    """On tokens that the project's own check does not use."""
    ids = torch.arange(3, 63).reshape(4, 15)
    more = {"decoder_input_ids": ids.flip(0)} if family == "seq2seq" else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits


def plain(place: Path) -> Base:
    return load_base(BaseSpec(str(place)))


def prune(model: nn.Module) -> None:
    """AdaLoRA as its allocator leaves it: nothing of the first layer, half of the others."""
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()
              if hasattr(m, "lora_E")}  # fmt: skip
    pattern = {}
    for number, (name, layer) in enumerate(layers.items()):
        kept = [number > 0 and i < 2 for i in range(4)]
        pattern[f"{name}.lora_E"] = kept
        layer.lora_A["default"].data[~torch.tensor(kept)] = 0
        layer.lora_A["default"].requires_grad_(False)
        layer.lora_E["default"].data.fill_(1.0)
    model.peft_config["default"].rank_pattern = pattern
