"""A diagonal preconditioner: each parameter's gradient over (mean g^2)^(1/4), as Adam has it.

The inner product of two gradients so divided is g . h / sqrt(mean g^2): one with Adam's step for
the other (Kingma and Ba, 2015). The means are taken over some training rows when a store is
created and then frozen; they serve the targets too. They are scaled to leave mean squared norms
as they were, so that norms stay in the units of the losses' gradients.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradex.data.formats import Row
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, encode_all, token_batches
from gradex.gradients.layers import param_count
from gradex.gradients.per_sample import Pass
from gradex.models.scoring import batch_on
from gradex.progress import progress

ROWS = 1024
FLOOR = 1e-6  # of the mean over parameters: what no row moves is not blown up without end


def adam_divisor(
    gradients: Pass, encoder: Encoder, rows: Sequence[Row], *, tokens_per_batch: int
) -> Float[np.ndarray, " param"]:
    """What to divide each parameter's gradient by, from one pass over the rows."""
    mean = _mean_squares(gradients, encoder, rows, tokens_per_batch)
    divisor = (mean + FLOOR * mean.mean()).sqrt().sqrt()
    kept = (mean / divisor.square()).sum() / mean.sum()
    return (divisor * kept.sqrt()).float().numpy()


def _mean_squares(
    gradients: Pass, encoder: Encoder, rows: Sequence[Row], tokens_per_batch: int
) -> Float[Tensor, " param"]:
    total = torch.zeros(param_count(gradients.slots), dtype=torch.float64)
    examples, _ = encode_all(encoder, rows)

    def add(gradient: Float[Tensor, "sample param"], offset: int, samples: slice) -> None:
        squares = gradient.square()
        squares = torch.where(squares.isfinite(), squares, 0).sum(0)
        total[offset : offset + gradient.shape[1]] += squares.double().cpu()

    lengths = [example.length for example in examples]
    with gradients.hooked(), progress("preconditioner", sum(lengths), unit="token") as bar:
        for at in token_batches(lengths, tokens_per_batch):
            batch = batch_on(gradients.model, [examples[i] for i in at], encoder)
            gradients.run(batch, {"loss": add})
            bar.update(sum(lengths[i] for i in at))
    return total / max(1, len(examples))


def some_rows(sources: Sources, *, count: int = ROWS) -> list[Row]:
    """About `count` training rows, as many of each source: those whose content hashes come first.

    They do not depend on the order of a file, or on the other rows of it.
    """
    each = -(-count // len(sources.trainable))
    chosen: list[Row] = []
    for name in sources.trainable:
        chosen += sorted(sources[name].rows["train"], key=lambda row: row.id)[:each]
    return chosen
