"""Random projections of gradients, drawn from a counter: nothing needs to be saved with a store.

`sjlt` is a sparse Johnson-Lindenstrauss transform with one non-zero a parameter (the count sketch
of Charikar, Chen and Farach-Colton, 2002): parameter i is added with sign s(i) to dimension
h(i) mod dim, both hashes of (seed, i). It preserves norms and inner products in mean, costs O(D) a
sample, and folds: with dim a divisor of dim', the short sketch is the long one summed by index
mod dim.

`rademacher` is the dense transform of Achlioptas (2003): entries +-1 / sqrt(dim), drawn again block
by block, O(D dim) a sample. Its columns do not depend on dim: a short sketch is the beginning of a
long one, times sqrt(dim' / dim).

`rademacher_fastjl` is trak's kernel for GPUs (see fast_jl): another matrix, and no `lift`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradex.errors import unknown
from gradex.gradients import fast_jl
from gradex.progress import say_once


@runtime_checkable
class Projector(Protocol):
    """A linear map from all parameters to `dim` numbers, applied slice by slice."""

    dim: int

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal maps, on any device."""
        ...

    def project(
        self,
        gradients: Float[Tensor, "sample param"],
        *,
        offset: int = 0,
        out: Float[Tensor, "sample dim"] | None = None,
    ) -> Float[Tensor, "sample dim"]:
        """The contribution of the parameters from `offset` on, added to `out` where it is given."""
        ...

    def lift(
        self, sketch: Float[Tensor, " dim"], *, size: int, offset: int = 0
    ) -> Float[Tensor, " param"]:
        """The transpose: a displacement of `size` parameters from `offset` on."""
        ...


class SparseProjector:
    """The count sketch described above; remembers 12 bytes a parameter of what it has drawn."""

    def __init__(self, dim: int, *, seed: int = 0):
        self.dim, self.seed = dim, seed
        self._plan = cache(self._draw)

    @property
    def fingerprint(self) -> str:
        return f"sjlt-1 dim={self.dim} seed={self.seed}"

    def project(
        self,
        gradients: Float[Tensor, "sample param"],
        *,
        offset: int = 0,
        out: Float[Tensor, "sample dim"] | None = None,
    ) -> Float[Tensor, "sample dim"]:
        bucket, sign = self._plan(offset, gradients.shape[1], gradients.device)
        out = _zeros(gradients, self.dim) if out is None else out
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
        # As wide as they are used: sums by short integers are eight times slower.
        return bucket, sign.float()


class DenseProjector:
    """The dense signs described above; holds a block of them at a time."""

    BLOCK = 2**22  # signs drawn at once

    def __init__(self, dim: int, *, seed: int = 0):
        self.dim, self.seed = dim, seed

    @property
    def fingerprint(self) -> str:
        return f"rademacher-1 dim={self.dim} seed={self.seed}"

    def project(
        self,
        gradients: Float[Tensor, "sample param"],
        *,
        offset: int = 0,
        out: Float[Tensor, "sample dim"] | None = None,
    ) -> Float[Tensor, "sample dim"]:
        out = _zeros(gradients, self.dim) if out is None else out
        for start, signs in self._blocks(offset, gradients.shape[1], gradients.device):
            part = gradients[:, start : start + len(signs)].float()
            out.addmm_(part, signs, alpha=self.dim**-0.5)
        return out

    def lift(
        self, sketch: Float[Tensor, " dim"], *, size: int, offset: int = 0
    ) -> Float[Tensor, " param"]:
        blocks = self._blocks(offset, size, sketch.device)
        return torch.cat([signs @ sketch for _, signs in blocks]) / self.dim**0.5

    def _blocks(
        self, offset: int, size: int, device: torch.device
    ) -> Iterator[tuple[int, Float[Tensor, "param dim"]]]:
        step = max(1, self.BLOCK // self.dim)
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield start, self._signs(offset + start, offset + stop, device)

    def _signs(self, start: int, stop: int, device: torch.device) -> Float[Tensor, "param dim"]:
        """One hash for each parameter and 64 columns, a bit a sign, read a byte at a time."""
        counter = torch.arange(start, stop, dtype=torch.int64, device=device)
        groups = range(-(-self.dim // 64))
        bits = torch.stack([hash_counter(counter, self.seed + (g << 32)) for g in groups], dim=1)
        octets = bits.view(torch.uint8).long()
        return _byte_signs(device)[octets].flatten(1)[:, : self.dim]


def _zeros(gradients: Float[Tensor, "sample param"], dim: int) -> Float[Tensor, "sample dim"]:
    return torch.zeros(len(gradients), dim, device=gradients.device)


@cache
def _byte_signs(device: torch.device) -> Float[Tensor, "256 8"]:
    """The eight signs of each byte, lowest bit first."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (2 * bits - 1).float().to(device)


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


def make_projector(kind: str, dim: int, *, seed: int = 0) -> Projector:
    if kind not in PROJECTORS:
        raise unknown("projector", kind, PROJECTORS, "--projector")
    return PROJECTORS[kind](dim, seed=seed)


def best_projector() -> str:
    """What `auto` stands for: trak's kernel on a GPU where it works, else the sparse sketch."""
    reason = fast_jl.why_not()
    if torch.cuda.is_available() and reason is not None:
        say_once(f"projector: sjlt, since {reason}")
    return "sjlt" if reason is not None else "rademacher_fastjl"


PROJECTORS: dict[str, Callable[..., Projector]] = {
    "sjlt": SparseProjector,
    "rademacher": DenseProjector,
    "rademacher_fastjl": fast_jl.FastJLProjector,
}
