"""Contexts of layers on disk, one file for a model on the very same batches.

A file's name is a fingerprint of all that its numbers depend on: the base model's weights and
config, the layers, the token ids, masks and labels of every batch (and so the source, the rows that
the seed drew, how many, how long, the tokenizer), and how sums are made. What they do not depend on
is not in it: knowledge-preserved and instruction-previewed adapters of any rank share a file.

A file is 4 in^2 bytes a layer, for a model of 7B weights some 28 GB. It is read a layer at a time.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gradex.adapters.covariance import Context, collect
from gradex.data.tokens import Batch, Family
from gradex.errors import GradexError
from gradex.models.load import bare
from gradex.runs import RUNS

FOLDER = RUNS / "covariances"
RULE = {"format": 1, "normalisation": "each sample over |its largest entry|", "sums": "float32"}
# What a config says of where a model came from, and by what it is read, but not of what it computes
NOT_CONTENT = ("_name_or_path", "transformers_version")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contexts:
    """Layer -> context, each read when it is asked for."""

    file: Path

    def __getitem__(self, layer: str) -> Context:
        with safe_open(self.file, "pt") as stream:
            return Context(*(stream.get_tensor(_key(layer, part)) for part in Context._fields))


def contexts(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    family: Family,
    *,
    folder: Path = FOLDER,
) -> Contexts:
    """What the layers see on the batches: from the folder, or collected and kept there."""
    file = folder / f"{fingerprint(model, layers, batches, family)}.safetensors"
    if _is_whole(file, layers):
        log.info("covariances: those of %s", file)
        return Contexts(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradexError(f"{folder}: cannot be written ({error.strerror})") from None
    rows = sum(len(batch["input_ids"]) for batch in batches)
    _write(file, collect(model, layers, batches, family), rows=rows)
    log.info("covariances: %d layers on %d rows, kept in %s", len(layers), rows, file)
    return Contexts(file)


def fingerprint(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], family: Family
) -> str:
    digest = xxhash.xxh3_128()
    settings = bare(model).config.to_dict()
    config = {key: value for key, value in settings.items() if key not in NOT_CONTENT}
    _mix(digest, RULE | {"family": family, "layers": list(layers), "config": config})
    for name, tensor in _weights(model):
        _mix_tensor(digest, name, tensor)
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            _mix_tensor(digest, name, tensor)
    return digest.hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The base's own, without an adapter that has just been attached to it."""
    for name, tensor in bare(model).state_dict().items():
        if "lora_" not in name:
            yield name.replace(".base_layer", ""), tensor


def _mix_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    _mix(digest, {"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape)})
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _mix(digest: Any, content: Mapping[str, Any]) -> None:
    digest.update(json.dumps(content, sort_keys=True, default=str).encode())


def _key(layer: str, part: str) -> str:
    return f"{layer}.{part}"


def _is_whole(file: Path, layers: Mapping[str, nn.Module]) -> bool:
    if not file.exists():
        return False
    wanted = {_key(layer, part) for layer in layers for part in Context._fields}
    try:
        with safe_open(file, "pt") as stream:
            if set(stream.keys()) == wanted:
                return True
    except (SafetensorError, OSError):
        pass
    log.warning("%s: damaged, its covariances are collected again", file)
    return False


def _write(file: Path, found: Mapping[str, Context], *, rows: int) -> None:
    """Under a name of this process until it is complete: several may be at the same one."""
    tensors = {
        _key(layer, part): tensor
        for layer, context in found.items()
        for part, tensor in context._asdict().items()
    }
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, {"made": json.dumps(RULE | {"rows": rows})})
        _sync(part)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        raise GradexError(f"{file}: cannot be written ({error})") from None
    finally:
        part.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
