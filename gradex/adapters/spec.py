"""Which adapter: a small value, attached to a base model and exported as a plain peft folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import nn

from gradex.data.tokens import Family
from gradex.errors import GradexError
from gradex.models.load import Base, hash_files
from gradex.records import read_json, write_json

TASK_TYPES: dict[Family, str] = {
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "classifier": "SEQ_CLS",
}
ALL_LINEAR = "all-linear"
WEIGHTS = "adapter_model.safetensors"  # the file of an adapter's folder


@dataclass(frozen=True)
class AdapterSpec:
    """LoRA (Hu et al., 2021): W + (alpha / rank) B A on every layer named in `targets`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)


def attach(base: Base, spec: AdapterSpec, *, seed: int) -> nn.Module:
    """The base model with a new adapter, drawn from `seed`; the base's own weights are frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        # GPT-2 and its kin keep their weights transposed, in Conv1D layers.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in base.model.modules()),
        target_modules=ALL_LINEAR if spec.targets == (ALL_LINEAR,) else list(spec.targets),
        task_type=TASK_TYPES[base.family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(base.model, config)
        except ValueError:
            layers = ", ".join(layer_names(base.model))
            raise GradexError(
                f"--lora_target_modules: {' '.join(spec.targets)} is in no layer of this model; "
                f"its layers are {layers}, or say {ALL_LINEAR}"
            ) from None


def layer_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all Linear and Conv1D layers."""
    kinds = ("Linear", "Conv1D")
    names = [n for n, m in model.named_modules() if type(m).__name__ in kinds]
    return sorted({name.split(".")[-1] for name in names})


def load(base: Base, folder: Path) -> nn.Module:
    """The base model with a trained adapter from a folder, in eval mode."""
    return load_all(base, {"default": folder})


def load_all(base: Base, folders: Mapping[str, Path]) -> nn.Module:
    """The base model with trained adapters, each under its name, in eval mode; `set_adapter`
    says which one works, at first the first."""
    model = base.model
    for name, folder in folders.items():
        model = _with_adapter(model, folder, name)
    return model.eval()


def _with_adapter(model: nn.Module, folder: Path, name: str) -> nn.Module:
    from peft import PeftModel

    if not (folder / WEIGHTS).is_file():
        raise GradexError(f"{folder}: not an adapter folder (it has no {WEIGHTS})")
    read_json(folder / "adapter_config.json", "a peft adapter's settings")
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=True)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=True)
    except Exception as error:  # a broken file makes libraries raise whatever they stumble over
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise GradexError(f"{folder}: the adapter does not fit this base model ({first})") from None
    _require_all_weights(model, folder, name)
    return model


def _require_all_weights(model: nn.Module, folder: Path, name: str) -> None:
    """peft leaves layers that the file does not name as they are drawn: at random."""
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    with safe_open(folder / WEIGHTS, "pt") as file:
        found = set(file.keys())
    if set(own) != found:
        wrong = min(set(own) ^ found)
        raise GradexError(f"{folder}: the adapter does not fit this base model (see {wrong})")


def export(model: nn.Module, folder: Path, *, base_path: str, card: str | None) -> None:
    """A plain peft folder with its model card, loadable with `PeftModel.from_pretrained`."""
    model.peft_config["default"].base_model_name_or_path = base_path
    # Embeddings are never trained here; peft would ask the hub whether they were resized.
    model.save_pretrained(folder, save_embedding_layers=False)
    file = folder / "adapter_config.json"
    write_json(file, _in_order(read_json(file, "a peft adapter's settings")))
    (folder / "README.md").unlink(missing_ok=True)  # peft's own, with its blanks to fill in
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _in_order(settings: dict[str, Any]) -> dict[str, Any]:
    """peft writes sets of module names in no fixed order."""
    return {key: sorted(v, key=str) if isinstance(v, list) else v for key, v in settings.items()}


def fingerprint(folder: Path) -> str:
    """Weights and settings of an adapter by content, wherever its base model lies."""
    settings = read_json(folder / "adapter_config.json", "a peft adapter's settings")
    settings.pop("base_model_name_or_path", None)
    text = json.dumps(_in_order(settings), sort_keys=True)
    weights = hash_files([folder / WEIGHTS])
    return f"{weights}-{xxhash.xxh3_64_hexdigest(text.encode())}"
