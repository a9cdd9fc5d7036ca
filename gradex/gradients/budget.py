"""How many padded tokens fit a batch: measured once, when a store is created."""

import os
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from gradex.data.tokens import Encoder, Example
from gradex.gradients.per_sample import Pass
from gradex.models.scoring import batch_on

SHARE = 0.5  # of the free memory; the rest is for what the measure does not see
LEAST, MOST = 256, 2**15


def fitting_tokens(
    gradients: Pass, encoder: Encoder, examples: Sequence[Example], *, num_workers: int
) -> int:
    """Free memory over what a token of these examples needs, as a power of two."""
    batch = batch_on(gradients.model, examples, encoder)
    per_token = bytes_kept(gradients, batch) / batch["input_ids"].numel()
    room = SHARE * free_bytes(batch["input_ids"].device) / num_workers
    # The way back needs about as much again: gradients beside the activations.
    fitting = room / (2 * per_token)
    return next(2**i for i in count() if 2 ** (i + 1) > min(max(fitting, LEAST), MOST))


def bytes_kept(gradients: Pass, batch: dict[str, Tensor]) -> int:
    """What one pass keeps for its way back, counted tensor by tensor: the same on any device."""
    weights = {p.untyped_storage().data_ptr() for p in gradients.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with gradients.hooked(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradients.run(batch, {"loss": lambda gradient, offset, samples: None})
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not tell: assume little
        return 2**31
