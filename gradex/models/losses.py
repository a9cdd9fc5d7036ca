"""Loss and margin of every sample, exact and in float32.

Per label token the margin is m = z_y - logsumexp(z_others), so that -log p = softplus(-m); a
sample's loss is the mean of its label tokens' -log p, its margin the mean of their m.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from gradex.data.tokens import IGNORED, Batch, Family

Objective = Literal["loss", "margin"]


def margins(
    logits: Float[Tensor, "*token vocab"], labels: Int[Tensor, "*token"]
) -> Float[Tensor, "*token"]:
    """z_y - logsumexp of the other logits; finite for any finite logits, no clipping."""
    logits = logits.float()
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    others = logits.scatter(-1, labels.unsqueeze(-1), float("-inf"))
    return chosen - others.logsumexp(-1)


def sample_objectives(
    model: nn.Module, batch: Batch, family: Family
) -> tuple[dict[Objective, Float[Tensor, " sample"]], Int[Tensor, " sample"]]:
    """Mean loss and mean margin of each sample, and its number of label tokens."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["labels"]
    if family == "classifier":
        labels = labels.unsqueeze(1)
        logits = model(**inputs).logits.unsqueeze(1)
    elif family == "seq2seq":
        # The model shifts the labels itself into the decoder's input.
        logits = model(**inputs, labels=labels).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        labels = labels[:, 1:]
    return _mean_over_labels(logits, labels)


def _mean_over_labels(
    logits: Float[Tensor, "sample token vocab"], labels: Int[Tensor, "sample token"]
) -> tuple[dict[Objective, Float[Tensor, " sample"]], Int[Tensor, " sample"]]:
    learned = labels != IGNORED
    counts = learned.sum(1)
    token_margins = margins(logits[learned], labels[learned])
    owner = learned.nonzero()[:, 0]

    def mean(values: Float[Tensor, " label"]) -> Float[Tensor, " sample"]:
        sums = torch.zeros(len(labels), dtype=values.dtype, device=values.device)
        return sums.index_add(0, owner, values) / counts

    return {"loss": mean(softplus(-token_margins)), "margin": mean(token_margins)}, counts
