"""Bone adapters of old pefts as MiSS adapters, which is what Bone is called since.

A Bone folder (peft 0.14 to 0.18) has the same tensors under other names. One of (out / r, r, r)
is block affine, W M + M (MiSS calls it `bat`); one of (r, out) is shared by shards of the input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from gradex.adapters.folder import BONE, SETTINGS, SETTINGS_OF, WEIGHTS
from gradex.errors import GradexError
from gradex.records import read_json, write_json

BLOCK, NEW_BLOCK = ".bone_block", ".miss_block"
NOT_KEPT = ("peft_version", "auto_mapping")


def is_bone(folder: Path) -> bool:
    settings = folder / SETTINGS
    return settings.exists() and read_json(settings, SETTINGS_OF).get("peft_type") == BONE


def write_miss(bone: Path, folder: Path) -> None:
    """The same adapter as a MiSS folder of today's peft, its tensors bit by bit."""
    if not is_bone(bone):
        raise GradexError(f"{bone}: --to miss is for Bone adapters of old pefts; this is none")
    if not (bone / WEIGHTS).is_file():
        raise GradexError(
            f"{bone}: it has no {WEIGHTS}; a pickle (.bin) is not read, save it as safetensors"
        )
    tensors = load_file(bone / WEIGHTS)
    settings = read_json(bone / SETTINGS, SETTINGS_OF, {"r": int})
    blocks = {key: tensor for key, tensor in tensors.items() if key.endswith(BLOCK)}
    variant = _variant(bone, settings, blocks)
    renamed = {key.replace(BLOCK, NEW_BLOCK): tensor for key, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS, {"format": "pt"})
    write_json(folder / SETTINGS, _as_miss(settings, variant))


def _variant(
    bone: Path, settings: Mapping[str, Any], blocks: Mapping[str, Tensor]
) -> Literal["bat"] | bool:
    """Told from the blocks: at first Bone was block affine without saying so in its settings."""
    rank, said = settings["r"], settings.get("init_weights")
    affine = {tensor.dim() == 3 for tensor in blocks.values()}
    sound = all(tensor.shape[-2 if tensor.dim() == 3 else 0] == rank for tensor in blocks.values())
    if len(affine) != 1 or not sound or (said == "bat" and affine != {True}):
        raise GradexError(
            f"{bone}: its tensors are no blocks of a Bone adapter with r = {rank} and init_weights "
            f"= {said}; the folder is damaged or incomplete"
        )
    return "bat" if affine == {True} else True


def _as_miss(settings: Mapping[str, Any], variant: Literal["bat"] | bool) -> dict[str, Any]:
    from peft import MissConfig

    known = set(MissConfig().to_dict()) - set(NOT_KEPT)
    kept = {key: value for key, value in settings.items() if key in known}
    return kept | {"peft_type": "MISS", "init_weights": variant, "miss_dropout": 0.0, "mini_r": 1}
