"""A model to be examined: its gradients over a few rows in all settings, float32 and half."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from gradex.adapters import folder as adapters
from gradex.adapters.attach import attach
from gradex.adapters.spec import AdapterSpec
from gradex.checks.invariance import Outcome, Setting, Skipped, survey
from gradex.data.formats import Row
from gradex.data.tokens import Encoder, Example, encode_all
from gradex.errors import GradexError
from gradex.gradients.budget import free_bytes
from gradex.gradients.per_sample import LoopPass, Pass, make_pass
from gradex.models.encoding import load_with_encoder, on_best_device
from gradex.models.load import Base, BaseSpec, bare
from gradex.models.scoring import batch_on

BYTES = {"float32": 4, "bfloat16": 2}
SHARE = 0.5  # of the free memory may be weights
DRAWN = 0.02  # the standard deviation of a fresh adapter's B


@dataclass(frozen=True)
class Subject:
    """A base model with an adapter from a folder, or with a fresh one."""

    spec: BaseSpec
    classes: tuple[str, ...]
    max_length: int
    adapter: Path | None

    def load(self, dtype: str) -> tuple[nn.Module, Encoder]:
        spec = replace(self.spec, dtype=dtype)
        base, encoder = load_with_encoder(spec, self.classes, max_length=self.max_length)
        base = on_best_device(base)
        if self.adapter is not None:
            return adapters.load(base, self.adapter), encoder
        return fresh_adapter(base), encoder


@dataclass(frozen=True)
class Survey:
    """What was measured, on which rows, and which of it is how gradex would work."""

    own: Setting
    outcomes: tuple[Outcome, ...]
    lengths: tuple[int, ...]
    is_batched: bool
    slow_layers: dict[str, str]


def fresh_adapter(base: Base, *, seed: int = 0) -> nn.Module:
    """LoRA whose B is drawn: at 0, as it comes, A would have no gradient."""
    model = attach(base, AdapterSpec(), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * DRAWN)
    return model


def examine_model(subject: Subject, rows: Sequence[Row], *, count: int) -> Survey:
    """All settings of a model, the dtype it is used in first."""
    dtype = subject.spec.dtype
    model, encoder = subject.load(dtype)
    examples = mixed_lengths(encoder, rows, count=count)
    gradients = _pass(model, encoder, examples)
    own = Setting(dtype, bare(model).config._attn_implementation, "right")
    outcomes = list(survey(gradients, encoder, examples, dtype=dtype))
    lengths = tuple(example.length for example in examples)
    found = Survey(
        own, (), lengths, not isinstance(gradients, LoopPass), dict(gradients.slow_layers())
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    device = next(model.parameters()).device
    del model, gradients
    gc.collect()
    outcomes += _in_other_dtypes(subject, examples, own, size=size, device=device)
    return replace(found, outcomes=tuple(outcomes))


def _in_other_dtypes(
    subject: Subject, examples: Sequence[Example], own: Setting, *, size: int, device: torch.device
) -> Iterator[Outcome]:
    for dtype in BYTES:
        if dtype == own.dtype:
            continue
        setting = Setting(dtype, own.attention, "right")
        if subject.spec.qlora:
            yield Skipped(setting, "a base in 4 bits computes in bfloat16")
        elif size * BYTES[dtype] > SHARE * free_bytes(device):
            yield Skipped(setting, f"{size:,} weights would not fit the free memory")
        else:
            yield from _in_dtype(subject, examples, setting)


def _in_dtype(subject: Subject, examples: Sequence[Example], setting: Setting) -> Iterator[Outcome]:
    try:
        model, encoder = subject.load(setting.dtype)
        gradients = _pass(model, encoder, examples)
        yield from survey(gradients, encoder, examples, dtype=setting.dtype)
    except RuntimeError as error:  # torch's for a kernel that this dtype lacks, or for no memory
        yield Skipped(setting, str(error).splitlines()[0])


def _pass(model: nn.Module, encoder: Encoder, examples: Sequence[Example]) -> Pass:
    probe = sorted(examples, key=lambda example: example.length)[:2]
    return make_pass(model, encoder.family, batch_on(model, probe, encoder))


def mixed_lengths(encoder: Encoder, rows: Sequence[Row], *, count: int) -> list[Example]:
    """Rows in even steps from the shortest to the longest; one batch of them is much padding."""
    examples = sorted(encode_all(encoder, rows)[0], key=lambda example: example.length)
    if not examples:
        raise GradexError(
            f"no row has a label left within --max_length {encoder.max_length} tokens"
        )
    last = len(examples) - 1
    places = {round(step * last / max(1, count - 1)) for step in range(count)}
    return [examples[place] for place in sorted(places)]
