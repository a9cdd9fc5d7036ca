"""Whether a row's loss and gradient depend on the batch it is in: they must not.

Each row is taken three times: alone, alone with the padding that it has in a batch, and in that
batch. What moves from the first to the second is the padding's doing, what moves from the second
to the third is the company's. A gap is relative to the row's own loss and gradient, or to a tenth
of the rows' mean where its own are smaller, so that rows next to nothing do not decide.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.data.tokens import Encoder, Example
from gradex.gradients.layers import param_count, trainable_slots
from gradex.gradients.per_sample import LoopPass, Pass
from gradex.models.load import bare
from gradex.models.scoring import batch_on

Padding = Literal["right", "left"]
ATTENTIONS = ("eager", "sdpa")
FLOOR = 0.1
FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


@dataclass(frozen=True)
class Taken:
    """Losses and gradients of some rows."""

    losses: Float[Tensor, " sample"]
    gradients: Float[Tensor, "sample param"]


@dataclass(frozen=True)
class Gap:
    """The largest relative differences over the rows, and the row that is furthest off."""

    loss: float
    gradient: float
    row: str

    @property
    def size(self) -> float:
        return max(self.loss, self.gradient)


@dataclass(frozen=True)
class Setting:
    """What a row's batch may depend on."""

    dtype: str
    attention: str
    padding: Padding

    @property
    def tolerance(self) -> float:
        return FLOAT32_TOLERANCE if self.dtype == "float32" else HALF_TOLERANCE


@dataclass(frozen=True)
class Measured:
    """The gaps of a setting: in the batch against alone, and the two steps between."""

    setting: Setting
    batch: Gap
    padding: Gap
    company: Gap
    positions_help: bool = False

    @property
    def is_within(self) -> bool:
        return self.batch.size <= self.setting.tolerance


@dataclass(frozen=True)
class Skipped:
    """A setting that was not measured, and why."""

    setting: Setting
    reason: str


Outcome = Measured | Skipped


def survey(
    gradients: Pass, encoder: Encoder, examples: Sequence[Example], *, dtype: str
) -> Iterator[Outcome]:
    """The gaps of these rows, first as the model comes, then under the other attentions."""
    model = bare(gradients.model)
    own = model.config._attn_implementation
    for attention in dict.fromkeys([own, *ATTENTIONS]):
        reason = _why_not(model, attention)
        if reason is None:
            yield from _both_paddings(gradients, encoder, examples, dtype, attention)
        else:
            yield Skipped(Setting(dtype, attention, "right"), reason)
    _why_not(model, own)


def _why_not(model: Any, attention: str) -> str | None:
    """Set the attention; what the model has against it, if anything."""
    if model.config._attn_implementation == attention:
        return None
    try:
        model.set_attn_implementation(attention)
    except (AttributeError, ImportError, ValueError) as error:
        return str(error).splitlines()[0]
    taken = model.config._attn_implementation == attention
    return None if taken else "the model's attention cannot be set"


def _both_paddings(
    gradients: Pass, encoder: Encoder, examples: Sequence[Example], dtype: str, attention: str
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    alone = joined([take(gradients, encoder, [example]) for example in examples])
    for padding in ("right", "left"):
        setting = Setting(dtype, attention, padding)
        if padding == "left" and encoder.family == "seq2seq":
            outcomes.append(Skipped(setting, "a decoder begins with its first label, not padding"))
        else:
            outcomes.append(_measure(gradients, encoder, examples, alone, setting))
    return outcomes


def _measure(
    gradients: Pass,
    encoder: Encoder,
    examples: Sequence[Example],
    alone: Taken,
    setting: Setting,
) -> Measured:
    rows, side = [example.row_id for example in examples], setting.padding
    loop = LoopPass(gradients.model, gradients.family)
    padded = take(loop, encoder, examples, padding=side)
    batch = take(gradients, encoder, examples, padding=side)
    found = Measured(
        setting, gap(batch, alone, rows), gap(padded, alone, rows), gap(batch, padded, rows)
    )
    if found.padding.size <= setting.tolerance or encoder.family == "seq2seq":
        return found
    try:
        with positions_from_mask(gradients.model):
            told = take(loop, encoder, examples, padding=side)
    except TypeError:  # a model without position_ids
        return found
    return replace(found, positions_help=gap(told, alone, rows).size <= setting.tolerance)


def take(
    gradients: Pass, encoder: Encoder, examples: Sequence[Example], *, padding: Padding = "right"
) -> Taken:
    """The losses and whole gradients of some rows in one batch."""
    slots = trainable_slots(gradients.model)
    out = torch.zeros(len(examples), param_count(slots))

    def keep(part: Float[Tensor, "sample param"], offset: int, samples: slice) -> None:
        out[samples, offset : offset + part.shape[1]] = part.cpu()

    batch = batch_on(gradients.model, examples, encoder, padding_side=padding)
    with gradients.hooked():
        values, _ = gradients.run(batch, {"loss": keep})
    return Taken(values["loss"].cpu(), out)


def joined(parts: Sequence[Taken]) -> Taken:
    return Taken(
        torch.cat([part.losses for part in parts]), torch.cat([part.gradients for part in parts])
    )


def gap(found: Taken, wanted: Taken, rows: Sequence[str]) -> Gap:
    """How far each row's loss and gradient are from what they should be, at most."""
    losses = _relative((found.losses - wanted.losses).abs(), wanted.losses.abs())
    sizes = wanted.gradients.norm(dim=1)
    gradients = _relative((found.gradients - wanted.gradients).norm(dim=1), sizes)
    worst = int(torch.maximum(losses, gradients).argmax())
    return Gap(float(losses.max()), float(gradients.max()), rows[worst])


def _relative(off: Float[Tensor, " sample"], size: Float[Tensor, " sample"]) -> Tensor:
    least = (FLOOR * size.mean()).clamp_min(torch.finfo(torch.float32).tiny)
    return (off / size.clamp_min(least)).nan_to_num(nan=float("inf"))


@contextmanager
def positions_from_mask(model: nn.Module) -> Iterator[None]:
    """Tell the model each token's position, counted over the tokens that are no padding."""

    def tell(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        positions = kwargs["attention_mask"].cumsum(1) - 1
        return args, kwargs | {"position_ids": positions.clamp_min(0)}

    handle = bare(model).register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
