"""Adapters on disk: plain peft folders that load on the base as it was, written and read.

An adapter that began from a part of its base is written as a LoRA of twice the rank (see residual),
with a `gradex.json` beside it; all weights of a model, where all were trained, as a plain model
folder.

`gradex.json` also has the marks of the base's weights, by which another base is refused. A residual
model that was written for other trainers (see initial) has one too, and an adapter whose config
names such a model as its base is held to it, whoever has trained it. What peft alone cannot tell:
it looks at the shapes of weights, and loads such an adapter on the original base without a word.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradex.adapters.adalora import forget_lossy_pattern, without_false_alarms
from gradex.adapters.halves import (
    double,
    first_halves,
    halve,
    joined,
    load_on_residual,
    taken_pair,
)
from gradex.adapters.residual import ADAPTER, Marks, own_marks, require_marked, taken_out
from gradex.errors import GradexError, first_line
from gradex.models.load import Base, hash_files
from gradex.records import read_json, write_json

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
MARKS = "gradex.json"
HALVES = "second_half"  # a key of it: the file's matrices are [A; A0] and [B | -B0]
RESIDUAL = "residual model"
WHOLE = "model.safetensors"
SETTINGS_OF = "a peft adapter's settings"
BONE = "BONE"  # the type of MiSS adapters that were written by peft 0.14 to 0.18


def export(model: nn.Module, folder: Path, *, base_path: str, card: str | None) -> None:
    """A folder that loads with peft on the base as it was, with its model card."""
    if hasattr(model, "peft_config"):
        _export_adapter(model, folder, base_path=base_path)
    else:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _export_adapter(model: nn.Module, folder: Path, *, base_path: str) -> None:
    save_plainly(model, folder, base_path=base_path)
    taken = taken_out(model)
    (folder / MARKS).unlink(missing_ok=True)
    if taken:
        write_json(folder / SETTINGS, double(read_json(folder / SETTINGS, SETTINGS_OF)))
        tensors = joined(load_file(folder / WEIGHTS), taken)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        write_marks(folder, own_marks(model), **{HALVES: "taken out of the base"})


def save_plainly(model: nn.Module, folder: Path, *, base_path: str) -> None:
    """The adapter as peft writes it, for the base as it is below it."""
    model.peft_config[ADAPTER].base_model_name_or_path = base_path
    forget_lossy_pattern(model)
    # Embeddings are never trained here; peft would ask the hub whether they were resized.
    with without_false_alarms():
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own, with its blanks to fill in
    write_json(folder / SETTINGS, _in_order(read_json(folder / SETTINGS, SETTINGS_OF)))


def write_marks(folder: Path, marks: Marks, **more: str) -> None:
    """What tells the base that an adapter (or a residual model) belongs to from others."""
    write_json(folder / MARKS, {**more, "base": marks})


def load(base: Base, folder: Path) -> nn.Module:
    """The base model with an adapter from a folder, to be trained on, in eval mode.

    What was taken out of the base when the adapter began is taken out again."""
    if (folder / WHOLE).is_file() and not (folder / SETTINGS).exists():
        return _with_weights(base.model, folder)
    if has_halves(folder):
        return _with_halves(base.model, folder).eval()
    return load_all(base, {ADAPTER: folder})


def has_halves(folder: Path) -> bool:
    """Whether its second half is what was taken out of the base."""
    return HALVES in _marks_file(folder)


def _with_weights(model: nn.Module, folder: Path) -> nn.Module:
    """A model all of whose weights were trained."""
    tensors = load_file(folder / WHOLE)
    found = model.load_state_dict(tensors, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if found.unexpected_keys or set(found.missing_keys) - tied:
        wrong = [*found.unexpected_keys, *found.missing_keys][0]
        raise GradexError(f"{folder}: not the weights of this base model (see {wrong})")
    return model.requires_grad_(True).eval()


def _with_halves(model: nn.Module, folder: Path) -> nn.Module:
    require_adapter(folder)
    _require_its_base(model, folder)
    settings = halve(read_json(folder / SETTINGS, SETTINGS_OF))
    tensors = load_file(folder / WEIGHTS)
    return load_on_residual(
        model, settings, first_halves(tensors), where=folder,
        taken=lambda name, _: taken_pair(tensors, name),
    )  # fmt: skip


def load_all(base: Base, folders: Mapping[str, Path]) -> nn.Module:
    """The base model with trained adapters, each under its name, in eval mode; `set_adapter`
    says which one works, at first the first. One alone can be trained on: of some types peft takes
    only one that is."""
    model = base.model
    for name, folder in folders.items():
        with without_false_alarms():
            model = _with_adapter(model, folder, name, is_trainable=len(folders) == 1)
    return model.eval()


def _with_adapter(model: nn.Module, folder: Path, name: str, *, is_trainable: bool) -> nn.Module:
    from peft import PeftModel

    require_adapter(folder)
    _require_its_base(model, folder)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=is_trainable)
        else:
            model = PeftModel.from_pretrained(
                model, folder, adapter_name=name, is_trainable=is_trainable
            )
    except Exception as error:  # a broken file makes libraries raise whatever they stumble over
        told = first_line(error)
        raise GradexError(f"{folder}: the adapter does not fit this base model ({told})") from None
    _require_all_weights(model, folder, name)
    return model


def require_adapter(folder: Path) -> None:
    """Refuse what is no adapter of peft's, or one of a kind that peft no longer has."""
    if not (folder / WEIGHTS).is_file():
        raise GradexError(f"{folder}: not an adapter folder (it has no {WEIGHTS})")
    if read_json(folder / SETTINGS, SETTINGS_OF, {"peft_type": str})["peft_type"] == BONE:
        raise GradexError(
            f"{folder}: a Bone adapter of an old peft, which calls it MiSS today; convert it with "
            f"`gradex convert --adapter {folder} --to miss`"
        )


def _require_its_base(model: nn.Module, folder: Path) -> None:
    """By the adapter's own marks, or by those of the residual model that it names as its base."""
    marks = _marks_file(folder) or _marks_file(_named_base(folder))
    if marks:
        require_marked(model, marks["base"], where=str(folder))


def _named_base(folder: Path) -> Path:
    return Path(str(read_json(folder / SETTINGS, SETTINGS_OF).get("base_model_name_or_path")))


def is_residual(place: Path) -> bool:
    """Whether a model's folder holds what was left of a base that an adapter began from."""
    return _marks_file(place).get("is_a") == RESIDUAL


def _marks_file(folder: Path) -> dict[str, Any]:
    """Its content; nothing where there is none."""
    if not os.path.isfile(folder / MARKS):  # also of names that no file can have
        return {}
    return read_json(folder / MARKS, "the marks of an adapter's base", {"base": {}})


def _require_all_weights(model: nn.Module, folder: Path, name: str) -> None:
    """peft leaves layers that the file does not name as they are drawn: at random."""
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    with safe_open(folder / WEIGHTS, "pt") as file:
        found = set(file.keys())
    if set(own) != found:
        wrong = min(set(own) ^ found)
        raise GradexError(f"{folder}: the adapter does not fit this base model (see {wrong})")


def _in_order(settings: dict[str, Any]) -> dict[str, Any]:
    """peft writes sets of module names in no fixed order."""
    return {key: sorted(v, key=str) if isinstance(v, list) else v for key, v in settings.items()}


def trained_lora(folder: Path) -> dict[str, Tensor] | None:
    """The trained tensors of a LoRA, without what its base was reduced by and without other
    layers' (a classifier's head); None where the folder holds another adapter."""
    if not (folder / SETTINGS).is_file():
        return None
    settings = read_json(folder / SETTINGS, SETTINGS_OF)
    # MiCA's B is fixed.
    if settings.get("peft_type") != "LORA" or settings.get("init_lora_weights") == "mica":
        return None
    tensors = {name: t for name, t in load_file(folder / WEIGHTS).items() if ".lora_" in name}
    return first_halves(tensors) if has_halves(folder) else tensors


def weight_files(folder: Path) -> list[Path]:
    """What holds the trained weights; nothing where the folder is no adapter's."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return sorted(folder.glob("model*.safetensors"))


def fingerprint(folder: Path) -> str:
    """Weights and settings of an adapter by content, wherever its base model lies."""
    weights = hash_files(weight_files(folder))
    if not (folder / SETTINGS).exists():
        return weights
    settings = read_json(folder / SETTINGS, SETTINGS_OF)
    settings.pop("base_model_name_or_path", None)
    settings |= _marks_file(folder)
    text = json.dumps(_in_order(settings), sort_keys=True)
    return f"{weights}-{xxhash.xxh3_64_hexdigest(text.encode())}"
