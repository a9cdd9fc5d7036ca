"""A base model together with the encoder of its rows, on the device that it works on."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from gradex.data.tokens import Encoder
from gradex.errors import GradexError
from gradex.models.load import Base, BaseSpec, label_ids, load_base
from gradex.progress import say_once


def load_with_encoder(
    spec: BaseSpec, classes: Sequence[str], *, max_length: int
) -> tuple[Base, Encoder]:
    """The base model and the encoder that turns rows into its ids; `classes` as in the data."""
    base = load_base(spec, labels=classes)
    ids: dict[str, int] = {}
    if base.family == "classifier":
        if not classes:
            raise GradexError(
                f"{spec.path}: a classifier needs labelled rows, with columns `text` and `label`"
            )
        ids = label_ids(base.model, classes)
    encoder = Encoder(base.tokenizer, family=base.family, max_length=max_length, label_ids=ids)
    say_once(f"{base.family} model {spec.path}: {encoder.describe()}")
    return base, encoder


def on_best_device(base: Base, *, index: int = 0) -> Base:
    """The base on a GPU where there is one (a quantised base is there already).

    Of several workers on a machine each has an index, and the GPUs are dealt out in turn.
    """
    if torch.cuda.is_available() and not hasattr(base.model, "hf_quantizer"):
        return replace(base, model=base.model.to(f"cuda:{index % torch.cuda.device_count()}"))
    return base
