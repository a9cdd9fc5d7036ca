"""Loss and margin of every sample, exact and in float32, with the LM head on label tokens only.

Per label token the margin is m = z_y - logsumexp(z_others), so that -log p = softplus(-m); a
sample's loss is the mean of its label tokens' -log p, its margin the mean of their m.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from gradex.data.tokens import IGNORED, Batch, Family
from gradex.models.load import bare

Objective = Literal["loss", "margin"]


def margins(
    logits: Float[Tensor, "*token vocab"], labels: Int[Tensor, "*token"]
) -> Float[Tensor, "*token"]:
    """z_y - logsumexp of the other logits; finite for any finite logits, no clipping."""
    return _Margins.apply(logits, labels)


class _Margins(torch.autograd.Function):
    """The margin and its closed-form gradient: one exponential a logit serves both ways.

    dm/dz_y = 1 and dm/dz_j = -softmax(z_others)_j.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        others = logits.to(torch.float32, copy=True)
        index = labels.unsqueeze(-1)
        chosen = others.gather(-1, index)
        others.scatter_(-1, index, float("-inf"))
        largest = others.amax(-1, keepdim=True)
        exponentials = others.sub_(largest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        ctx.save_for_backward(exponentials, total, index)
        ctx.dtype = logits.dtype
        return (chosen - largest - total.log()).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        exponentials, total, index = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        return (exponentials * (-grad / total)).scatter_(-1, index, grad).to(ctx.dtype), None


def sample_objectives(
    model: nn.Module, batch: Batch, family: Family, *, by_sample: bool = False
) -> tuple[dict[Objective, Float[Tensor, " sample"]], Int[Tensor, " sample"]]:
    """Mean loss and mean margin of each sample, and its number of label tokens.

    The head sees label tokens alone, in one row, or, `by_sample`, in a padded row a sample.
    """
    found = label_logits(model, batch, family, by_sample=by_sample)
    return _mean_over_labels(found, len(batch["labels"]))


class LabelLogits(NamedTuple):
    """What the model says at each label token, which token that is, and whose."""

    logits: Float[Tensor, "label vocab"]
    labels: Int[Tensor, " label"]
    owner: Int[Tensor, " label"]


def label_logits(
    model: nn.Module, batch: Batch, family: Family, *, by_sample: bool = False
) -> LabelLogits:
    """One forward pass, with the head on label tokens only; samples in their order."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["labels"]
    if family == "classifier":
        owner = torch.arange(len(labels), device=labels.device)
        return LabelLogits(model(**inputs).logits, labels, owner)
    if family == "seq2seq":
        inputs["decoder_input_ids"] = bare(model).prepare_decoder_input_ids_from_labels(labels)
    else:
        # The token at one place is predicted from what the model makes of the one before it.
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        inputs["use_cache"] = False
    learned = labels != IGNORED
    places = _label_places(learned, by_sample)
    with _head_on(bare(model), learned, places.index) as shown:
        logits = model(**inputs).logits
    if not shown:
        logits = logits[:, -learned.shape[1] :][learned]
    elif by_sample:
        logits = logits[places.real]
    return LabelLogits(logits, labels[learned], learned.nonzero()[:, 0])


class _Places(NamedTuple):
    """Where the label tokens are in the flattened batch, and which of them are no padding."""

    index: Int[Tensor, "..."]
    real: Bool[Tensor, "..."]


def _label_places(learned: Bool[Tensor, "sample token"], by_sample: bool) -> _Places:
    if not by_sample:
        index = learned.flatten().nonzero()[:, 0]
        return _Places(index, torch.ones_like(index, dtype=torch.bool))
    width = int(learned.sum(1).max())
    # A stable sort brings each row's label places to its front, in their order.
    order = (~learned).int().argsort(dim=1, stable=True)[:, :width]
    start = torch.arange(len(learned), device=learned.device)[:, None] * learned.shape[1]
    return _Places(order + start, learned.gather(1, order))


@contextmanager
def _head_on(
    model: Any, learned: Bool[Tensor, "sample token"], index: Int[Tensor, "..."]
) -> Iterator[list[bool]]:
    """Show the output embedding what predicts a label, alone: logits are most of a small model's
    work, and labels are often a small part of the tokens. The list stays empty where it is not
    known which of its inputs these are."""
    shown: list[bool] = []

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden, *rest = args
        if hidden.shape[:-1] != learned.shape:  # virtual tokens before the row, say
            return None
        shown.append(True)
        chosen = hidden.flatten(0, 1).index_select(0, index.flatten())
        return chosen.view(*index.shape, -1), *rest

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        yield shown
    finally:
        if handle is not None:
            handle.remove()


def _mean_over_labels(
    found: LabelLogits, samples: int
) -> tuple[dict[Objective, Float[Tensor, " sample"]], Int[Tensor, " sample"]]:
    token_margins = margins(found.logits, found.labels)
    counts = found.owner.bincount(minlength=samples)

    def mean(values: Float[Tensor, " label"]) -> Float[Tensor, " sample"]:
        sums = torch.zeros(samples, dtype=values.dtype, device=values.device)
        return sums.index_add(0, found.owner, values) / counts

    return {"loss": mean(softplus(-token_margins)), "margin": mean(token_margins)}, counts
