"""The model at theta* + w: its meta adapter moved by a displacement, and the targets' losses there.

A displacement z of the sketches is w = C P z in the weights, with P the projection and C the
diagonal that gradients were multiplied by before it. A gradient g was sketched as P^T C g, so that
a loss changes to first order by as much in both spaces: <P^T C g, z> = <g, w>.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.adapters import folder as adapters
from gradex.data.recorded import load_data, require_same_data, rows_seen
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, Example, class_names, encode_all
from gradex.errors import GradexError
from gradex.gradients.fast_jl import FastJLProjector
from gradex.gradients.layers import Slot, param_count, trainable_slots
from gradex.gradients.meta_training import meta_training_of
from gradex.gradients.projectors import PROJECTORS, Projector, make_projector
from gradex.gradients.store import GradientStore
from gradex.models.encoding import load_with_encoder, on_best_device
from gradex.models.load import base_spec
from gradex.models.scoring import row_losses


@dataclass(frozen=True)
class Lift:
    """The way back from sketches to weights: w = C P z. `scale` is C's diagonal, None where 1."""

    projector: Projector
    scale: Float[Tensor, " param"] | None

    def __call__(self, z: Float[np.ndarray, " dim"], *, size: int) -> Float[Tensor, " param"]:
        lifted = self.projector.lift(torch.from_numpy(z).float(), size=size)
        return lifted if self.scale is None else lifted * self.scale

    def gain(self, size: int) -> float:
        """sqrt(E|w|^2) / |z|: each weight is a signed mean of dim numbers with variance |z|^2/dim.

        The mean over projections stands for any one of them where weights are many times dim.
        """
        squares = float(size) if self.scale is None else float(self.scale.double().square().sum())
        return (squares / self.projector.dim) ** 0.5


def lift_of(store: GradientStore) -> Lift:
    """The lift of a store's projection; one that has none is refused."""
    kind, seed = store.space["projector"], store.space["seed"]
    if PROJECTORS.get(kind) is FastJLProjector:
        raise GradexError(
            f"{store.path}: was made with {kind}, which has no way back to the weights; make a "
            "store with `--projector sjlt` or rademacher"
        )
    divisor = store.precondition
    scale = None if divisor is None else torch.from_numpy(1 / divisor)
    return Lift(make_projector(kind, store.dim, seed=seed), scale)


@dataclass(frozen=True)
class MetaModel:
    """The base with its trained adapter, and the rows of each target; loaded once."""

    model: nn.Module
    encoder: Encoder
    slots: list[Slot]
    examples: dict[str, list[Example]]

    @property
    def size(self) -> int:
        """How many weights the adapter has."""
        return param_count(self.slots)

    @property
    def norm(self) -> float:
        """|theta*|, of the adapter's weights."""
        squares = [slot.parameter.detach().double().square().sum().item() for slot in self.slots]
        return sum(squares) ** 0.5

    def losses(self, displacement: Float[Tensor, " param"]) -> Float[np.ndarray, " target"]:
        """The mean loss of every target's rows at theta* + the displacement."""
        with displaced(self.slots, displacement):
            found = [row_losses(self.model, e, self.encoder) for e in self.examples.values()]
        return np.array([losses.mean() for losses in found])


@contextmanager
def displaced(slots: Sequence[Slot], displacement: Float[Tensor, " param"]) -> Iterator[None]:
    """Within the block the parameters are moved; after it they have the bits they had before."""
    kept = [slot.parameter.detach().clone() for slot in slots]
    try:
        with torch.no_grad():
            for slot in slots:
                part = displacement[slot.offset : slot.offset + slot.size]
                slot.parameter.add_(part.view_as(slot.parameter).to(slot.parameter))
        yield
    finally:
        with torch.no_grad():
            for slot, before in zip(slots, kept, strict=True):
                slot.parameter.copy_(before)


def load_meta_model(
    store: GradientStore,
    targets: Sequence[str],
    *,
    split: str,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> MetaModel:
    """The model whose gradients a store holds, and its targets' rows of a split."""
    trusted = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    settings = store.recorded_settings() | trusted
    meta = meta_training_of(store, otherwise="start again from meta_train")
    sources = load_data(settings)
    hashes = store.data_hashes()
    require_same_data(sources, {t: hashes[t] for t in targets}, where=str(store.path))
    classes = class_names(sources, among=rows_seen(meta.folder).ids)
    base, encoder = load_with_encoder(
        base_spec(settings), classes, max_length=settings["max_length"]
    )
    model = adapters.load(on_best_device(base), meta.adapter)
    examples = {name: _examples(store, sources, encoder, name, split=split) for name in targets}
    return MetaModel(model, encoder, trainable_slots(model), examples)


def _examples(
    store: GradientStore, sources: Sources, encoder: Encoder, target: str, *, split: str
) -> list[Example]:
    """The rows that the store's mean is over: those that have a gradient."""
    good = set(store.target(target, split).table["id"].astype(str))
    rows = [row for row in sources[target].rows[split] if row.id in good]
    return encode_all(encoder, rows)[0]
