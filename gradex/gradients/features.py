"""A feature vector a row: the mean over its tokens of the model's last hidden states.

The states are those of the forward pass that the gradients are taken of, at the meta adapter: after
the last layer and its norm, of an encoder-decoder the decoder's. Where a token sees only those
before it, the i-th counts i times, since later ones know more of the row:

    feature = sum_i i h_i / sum_i i        over prompt and completion; a decoder's, the completion

A classifier's tokens see the whole row and count alike. The weights are those of SGPT (Muennighoff,
2022, arXiv 2202.08904), which RDS+ takes (Ivison et al., 2025, arXiv 2503.01807).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from gradex.data.tokens import IGNORED, Batch, Family
from gradex.errors import GradexError
from gradex.models.load import bare

KIND = "weighted-mean-1"  # in the space of a store: all its features are of one kind
Placed = list[tuple[np.ndarray, np.ndarray]]


class Watch:
    """The last hidden states of the forward passes since they were last asked for."""

    def __init__(self, model: nn.Module, family: Family):
        self.family = family
        self.body = _body(bare(model), family)
        self._states: list[Float[Tensor, "sample token hidden"]] = []

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        handle = self.body.register_forward_hook(self._keep)
        try:
            yield self
        finally:
            handle.remove()

    def features(self, batch: Batch) -> Float16[np.ndarray, "sample hidden"]:
        """Of the batch that just went through the model, in one forward pass or row by row.

        Hidden states come out of a norm: half floats hold them, none is very small or large.
        """
        states = torch.cat(self._states)
        self._states.clear()
        weights = _weights(batch, self.family)
        states = states[:, -weights.shape[1] :].float()  # virtual tokens of an adapter come first
        means = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        return means.half().cpu().numpy()

    def _keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._states.append(output[0].detach())


def in_order(found: Placed, count: int) -> Float16[np.ndarray, "row hidden"]:
    """Batches of features at the places of their rows; zeros for rows that were in none."""
    width = found[0][1].shape[1] if found else 0
    out = np.zeros((count, width), np.float16)
    for at, features in found:
        out[at] = features
    return out


def _body(model: Any, family: Family) -> nn.Module:
    """The part of a model whose output is its last hidden states: all but the head."""
    body = model.get_decoder() if family == "seq2seq" else model.base_model
    if body is None or body is model:
        raise GradexError(
            f"--features: a {type(model).__name__} does not tell its body from its head; leave the "
            "flag out"
        )
    return body


def _weights(batch: Batch, family: Family) -> Int[Tensor, "sample token"]:
    """How much each token counts: nothing for padding, on either side."""
    if family == "classifier":
        return batch["attention_mask"]
    real = batch["labels"] != IGNORED if family == "seq2seq" else batch["attention_mask"]
    return real.cumsum(1) * real
