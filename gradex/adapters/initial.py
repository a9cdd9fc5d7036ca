"""The beginning of a training as a folder, so that another trainer can do the training.

    DIR/model      the residual model with its tokenizer, where a part of the base was taken out
    DIR/adapter    the initial adapter, a plain peft folder that names its base

An adapter that leaves the base alone names the base itself, and there is no model folder.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from gradex.adapters import peft_configs as configs
from gradex.adapters.folder import RESIDUAL, save_plainly, write_marks
from gradex.adapters.kinds import kind_of
from gradex.adapters.residual import residual_marks
from gradex.errors import GradexError
from gradex.models.load import bare


def initial_folder(name: str | None, kind: str, *, resumed: bool) -> Path | None:
    """Where to write it, refused where that cannot be; a run that is resumed may have done so."""
    if name is None:
        return None
    if kind_of(kind).config is configs.full:
        raise GradexError(
            f"--save_init: --adapter {kind} trains the base itself, which is its own beginning; "
            "leave it out"
        )
    if not name:
        raise GradexError("--save_init: found an empty name; name a new folder, or leave it out")
    if os.path.exists(name) and not resumed:
        raise GradexError(f"--save_init {name}: exists already; name another or remove it")
    return Path(name)


def save_initial(model: nn.Module, folder: Path, *, tokenizer: Any, base_path: str) -> None:
    """Base and adapter together give what the base gave; the folder is complete or absent."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise GradexError(f"--save_init {folder}: {error.strerror}; name another") from None
    marks = residual_marks(model)
    place = str(folder.resolve() / "model") if marks else _from_anywhere(base_path)
    save_plainly(model, part / "adapter", base_path=place)
    if marks:
        write_marks(part / "adapter", marks, begins="on a residual model")
        _save_residual(model, part / "model", tokenizer=tokenizer)
        write_marks(part / "model", marks, is_a=RESIDUAL)
    part.rename(folder)


def _from_anywhere(base_path: str) -> str:
    return str(Path(base_path).resolve()) if Path(base_path).exists() else base_path


def _save_residual(model: nn.Module, folder: Path, *, tokenizer: Any) -> None:
    """The base below the adapter, its weights under the names that they have without one."""
    base = bare(model)
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in base.state_dict().items()
        if ".lora_" not in name
    }
    base.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
