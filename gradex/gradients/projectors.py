"""Random projections of gradients, drawn from a counter: nothing needs to be saved with a store.

`sjlt` is a sparse Johnson-Lindenstrauss transform with one non-zero a parameter (the count sketch
of Charikar, Chen and Farach-Colton, 2002): parameter i is added with sign s(i) to dimension
h(i) mod dim, both hashes of (seed, i). It preserves norms and inner products in mean, costs O(D) a
sample, and folds: with dim a divisor of dim', the short sketch is the long one summed by index
mod dim.
"""

from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradex.errors import unknown


@runtime_checkable
class Projector(Protocol):
    """A linear map from all parameters to `dim` numbers, applied slice by slice."""

    dim: int

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal maps, on any device."""
        ...

    def project(
        self, gradients: Float[Tensor, "sample param"], *, offset: int = 0
    ) -> Float[Tensor, "sample dim"]:
        """The contribution of the parameters from `offset` on."""
        ...

    def lift(
        self, sketch: Float[Tensor, " dim"], *, size: int, offset: int = 0
    ) -> Float[Tensor, " param"]:
        """The transpose: a displacement of `size` parameters from `offset` on."""
        ...


class SparseProjector:
    """The count sketch described above; remembers 5 bytes a parameter of what it has drawn."""

    def __init__(self, dim: int, *, seed: int = 0):
        self.dim, self.seed = dim, seed
        self._plan = cache(self._draw)

    @property
    def fingerprint(self) -> str:
        return f"sjlt-1 dim={self.dim} seed={self.seed}"

    def project(
        self, gradients: Float[Tensor, "sample param"], *, offset: int = 0
    ) -> Float[Tensor, "sample dim"]:
        bucket, sign = self._plan(offset, gradients.shape[1], gradients.device)
        out = torch.zeros(len(gradients), self.dim, device=gradients.device)
        return out.index_add_(1, bucket, gradients.float() * sign)

    def lift(
        self, sketch: Float[Tensor, " dim"], *, size: int, offset: int = 0
    ) -> Float[Tensor, " param"]:
        bucket, sign = self._plan(offset, size, sketch.device)
        return sketch[bucket] * sign

    def _draw(self, offset: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        counter = torch.arange(offset, offset + size, dtype=torch.int64, device=device)
        bits = hash_counter(counter, self.seed)
        bucket = (bits >> 1).bitwise_and(2**62 - 1) % self.dim
        sign = (bits & 1) * 2 - 1
        return bucket.int(), sign.to(torch.int8)


def hash_counter(counter: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
    """64 well-mixed bits for each counter: the finaliser of splitmix64 (Steele et al., 2014).

    Only wrapping integer multiplies, shifts and xors, so the bits are the same on every device.
    """
    bits = (counter + 1) * _signed(0x9E3779B97F4A7C15) + _signed(seed * 0xD1342543DE82EF95)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shift_right(bits, shift)) * _signed(factor)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Int[Tensor, " n"], by: int) -> Int[Tensor, " n"]:
    """A logical shift: torch's own is arithmetic for signed integers."""
    return (bits >> by).bitwise_and(2 ** (64 - by) - 1)


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


PROJECTORS = {"sjlt": SparseProjector}


def make_projector(kind: str, dim: int, *, seed: int = 0) -> Projector:
    if kind not in PROJECTORS:
        raise unknown("projector", kind, PROJECTORS, "--projector")
    return PROJECTORS[kind](dim, seed=seed)
