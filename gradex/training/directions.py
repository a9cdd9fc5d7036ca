"""Where rows pull a model as it is now: mean gradients of everything it trains.

Rows with labels pull by their loss. Rows without pull towards predictions that are sure of each row
and differ between rows: by the negative mutual information of row and prediction, the surrogate of
ParetoDA (Lv et al., NeurIPS 2021, section 3.2).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.data.tokens import Encoder, Example
from gradex.models.losses import label_logits, sample_objectives
from gradex.models.scoring import batch_on
from gradex.models.unlabelled import mutual_information


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Without dropout, and back as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def loss_gradient(
    model: nn.Module, examples: Sequence[Example], encoder: Encoder, *, batch_size: int
) -> Float[Tensor, " param"]:
    """Of the examples' mean loss, by one backward a batch."""
    total = torch.zeros(())
    for part in _parts(examples, batch_size):
        values, _ = sample_objectives(model, batch_on(model, part, encoder), encoder.family)
        total = total + _pulled(model, values["loss"].sum())
    return total / len(examples)


def unlabelled_gradient(
    model: nn.Module, examples: Sequence[Example], encoder: Encoder, *, batch_size: int
) -> Float[Tensor, " param"]:
    """Of the negative mutual information over all examples, each with one label place.

    The information is no sum over rows. Its derivative at the logits of all of them is taken
    first, and brought back through the model batch by batch.
    """

    def logits_of(part: Sequence[Example]) -> Float[Tensor, "sample vocab"]:
        return label_logits(model, batch_on(model, part, encoder), encoder.family).logits.float()

    parts = list(_parts(examples, batch_size))
    logits = torch.cat([logits_of(part).detach() for part in parts]).requires_grad_()
    (pull,) = torch.autograd.grad(-mutual_information(logits), logits)
    total = torch.zeros(())
    for part, at_logits in zip(parts, pull.split(batch_size), strict=True):
        total = total + _pulled(model, (logits_of(part) * at_logits).sum())
    return total


def _parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[start : start + size] for start in range(0, len(examples), size))


def _pulled(model: nn.Module, value: Tensor) -> Float[Tensor, " param"]:
    """The gradient of all that is trained, flat, in main memory: there is one for every source."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(value, trained, materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.flatten().float().cpu() for gradient in found])
