"""trak's CUDA kernel for dense Rademacher projections, with what must be known to trust it.

    dims        the kernel makes multiples of 512 columns, each 32 of them seeded by themselves: the
                first `dim` of the next multiple are a projection of their own
    tiles       its random stream depends on the number of tiles the features are cut into, by
                default the GPU's processors: fixed here, so that a store belongs to no one GPU
    halves      it rounds its input to half floats: each row is divided by its largest entry first
    zeros       builds for another CUDA version have returned zeros without an error: a self-test
                projects known rows before the kernel is used

Another matrix than `rademacher`, with its own fingerprint, and no transpose, hence no `lift`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradex.errors import GradexError

COLUMNS = 512
TILES = 108
ROWS = 8  # the kernel's smallest batch: a launch with more needs more shared memory than some have


class FastJLProjector:
    """See the module; one seed for each slice of the parameters."""

    def __init__(self, dim: int, *, seed: int = 0):
        reason = why_not()
        if reason is not None:
            raise GradexError(f"--projector rademacher_fastjl: {reason}; use --projector sjlt")
        self.dim, self.seed = dim, seed

    @property
    def fingerprint(self) -> str:
        return f"rademacher-fastjl-1 dim={self.dim} seed={self.seed} tiles={TILES}"

    def project(
        self,
        gradients: Float[Tensor, "sample param"],
        *,
        offset: int = 0,
        out: Float[Tensor, "sample dim"] | None = None,
    ) -> Float[Tensor, "sample dim"]:
        gradients = gradients.float()
        largest = (
            gradients.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        )
        columns = -(-self.dim // COLUMNS) * COLUMNS
        unscaled = _kernel(gradients / largest, columns, self._seed_of(offset))[:, : self.dim]
        projected = unscaled * (largest / self.dim**0.5)
        return projected if out is None else out.add_(projected)

    def lift(
        self, sketch: Float[Tensor, " dim"], *, size: int, offset: int = 0
    ) -> Float[Tensor, " param"]:
        raise GradexError(
            "the store was made with rademacher_fastjl, which has no way back to the weights; make "
            "one with `--projector sjlt` or rademacher"
        )

    def _seed_of(self, offset: int) -> int:
        return (self.seed * 1_000_003 + offset) % (2**31 - 1)


def _kernel(rows: Float[Tensor, "sample param"], columns: int, seed: int) -> Tensor:
    from trak.projectors import CudaProjector, ProjectionType

    projector: Any = CudaProjector(
        rows.shape[1], columns, seed, ProjectionType.rademacher, rows.device, ROWS
    )
    projector.num_sms = TILES
    return projector.project(rows.contiguous(), model_id=0)


def why_not() -> str | None:
    """Why the kernel cannot be used here; None where it passes its self-test."""
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        return "trak's kernel needs a CUDA GPU and none was found"
    if find_spec("fast_jl") is None:
        return "trak's kernel is not installed (pip install fast_jl)"
    return self_test(torch.device("cuda"))


def self_test(device: torch.device) -> str | None:
    """Project random rows: norms must hold, and other columns must not repeat the first ones."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, 4096, generator=generator).to(device)
    rows /= rows.abs().amax(dim=1, keepdim=True)
    try:
        out = _kernel(rows, COLUMNS, 1) / COLUMNS**0.5
    except Exception as error:  # a broken build raises whatever it stumbles over
        return f"trak's kernel fails its self-test ({error})"
    ratio = (out.norm(dim=1) / rows.norm(dim=1)).mean().item()
    if not 0.8 < ratio < 1.2:
        return f"trak's kernel fails its self-test (norms come out {ratio:.2f} times what they are)"
    if torch.allclose(out[:, :32], out[:, 32:64]):
        return "trak's kernel fails its self-test (its columns repeat)"
    return None
