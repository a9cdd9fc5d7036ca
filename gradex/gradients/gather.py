"""Puts the gradients that arrive in a backward pass together, and hands each on when it is whole.

A layer that is called several times has the sum of its calls' gradients; Linear layers that read
one tensor (q, k and v do) share one matrix product.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from gradex.errors import GradexError
from gradex.gradients.formulas import outer
from gradex.gradients.layers import Layer, Slot

# Receives some samples' gradients of some parameters: where these start, and which samples.
Consumer = Callable[[Float[Tensor, "sample param"], int, slice], None]
ALL = slice(None)


class Unseen(GradexError):
    """A layer whose samples cannot be told apart from outside."""


def unseen(layer: str, why: str) -> Unseen:
    return Unseen(f"layer {layer} {why}, so its samples' gradients cannot be told apart")


@dataclass(eq=False)
class SharedInput:
    """The calls of Linear layers that read one tensor."""

    tensor: weakref.ref
    expected: int = 0
    arrived: list[tuple[Layer, Slot, Tensor, Tensor]] = field(default_factory=list)


class Gathering:
    """One batch: `register` in the forward pass, `arrive` in the backward passes."""

    def __init__(self, samples: int):
        self.samples = samples
        self.is_resting = False  # while a layer runs again by itself, nothing is counted
        self._calls: Counter[Layer] = Counter()
        self._inputs: dict[int, SharedInput] = {}

    def register(self, layer: Layer, kept: Tensor) -> SharedInput | None:
        """Count a call, and find the calls that share its input."""
        if len(kept) != self.samples:
            return None
        self._calls[layer] += 1
        if layer.shareable is None:
            return None
        shared = self._inputs.get(id(kept))
        if shared is None or shared.tensor() is not kept:
            shared = self._inputs[id(kept)] = SharedInput(weakref.ref(kept))
        shared.expected += 1
        return shared

    def begin(self, consume: Consumer) -> None:
        self._consume = consume
        self._partial: dict[Slot, list[Tensor]] = {}
        self._seen: set[Slot] = set()

    def arrive(self, layer: Layer, kept: Tensor, grad: Tensor, shared: SharedInput | None) -> None:
        """A gradient at a layer's output, with the tensor that was kept of the same call."""
        if len(kept) != self.samples or len(grad) != self.samples:
            raise unseen(layer.name, f"sees {len(kept)} rows for {self.samples} samples")
        if layer.alone is not None:
            self.is_resting = True
            found = layer.alone(layer.module, kept, grad)
            self.is_resting = False
            for slot, gradient in zip(layer.slots, found, strict=True):
                self._deliver(layer, slot, gradient.flatten(1))
            return
        x, g = _by_token(kept), _by_token(grad)
        for slot in layer.slots:
            if shared is not None and shared.expected > 1 and slot is layer.shareable:
                self._join(layer, slot, x, g, shared)
            else:
                self._deliver(layer, slot, slot.gradient(x, g))

    def _join(self, layer: Layer, slot: Slot, x: Tensor, g: Tensor, shared: SharedInput) -> None:
        shared.arrived.append((layer, slot, x, g))
        if len(shared.arrived) == shared.expected:
            self._multiply(shared)

    def _multiply(self, shared: SharedInput) -> None:
        """g x^T for all the layers that read x, as one product."""
        calls, x = list(shared.arrived), shared.arrived[0][2]
        shared.arrived.clear()
        together = torch.cat([g for *_, g in calls], dim=-1)
        products = outer(together, x).split([g.shape[-1] for *_, g in calls], dim=1)
        for (layer, slot, *_), product in zip(calls, products, strict=True):
            self._deliver(layer, slot, product.flatten(1))

    def _deliver(self, layer: Layer, slot: Slot, gradient: Tensor) -> None:
        """Hand a gradient on, or keep it until that of the layer's last call is there."""
        if self._calls[layer] <= 1:
            if slot in self._seen:
                raise unseen(layer.name, "runs more often backward than forward")
            self._seen.add(slot)
            self._consume(gradient, slot.offset, ALL)
            return
        parts = self._partial.setdefault(slot, [])
        parts.append(gradient)
        if len(parts) == self._calls[layer]:
            self._hand_on(slot)

    def _hand_on(self, slot: Slot) -> None:
        self._seen.add(slot)
        self._consume(torch.stack(self._partial.pop(slot)).sum(0), slot.offset, ALL)

    def finish(self) -> None:
        """Hand on what waits for a call whose output nobody used."""
        for shared in self._inputs.values():
            if shared.arrived:
                self._multiply(shared)
        for slot in list(self._partial):
            self._hand_on(slot)
        if not self._seen:
            raise GradexError("no gradient reached the adapter: the model cuts its graph")


def _by_token(tensor: Tensor) -> Float[Tensor, "sample token _"]:
    if tensor.dim() != 3:
        tensor = tensor.reshape(len(tensor), -1, tensor.shape[-1])
    return tensor.float()
