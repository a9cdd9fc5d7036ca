"""A pass over calibration rows in which the inputs of layers are looked at."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from gradex.data.tokens import IGNORED, Batch, Family

Note = Callable[[str, Tensor], None]  # of a layer's name, and what it is given


def told_apart(batch: Batch, family: Family) -> Batch:
    """Texts and labels of an encoder-decoder at different widths: by how many tokens a layer is
    given it is known whether they are the encoder's, as in cross-attention, or the decoder's."""
    if family == "seq2seq" and batch["labels"].shape == batch["input_ids"].shape:
        return batch | {"labels": pad(batch["labels"], (0, 1), value=IGNORED)}
    return batch


@contextmanager
def watching(layers: Mapping[str, nn.Module], note: Note) -> Iterator[None]:
    """Within the block, `note` is told what the layers are given, by their names."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: note(name, args[0])

    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout, and back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
