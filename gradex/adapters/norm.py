"""NoRM: of a trained LoRA, the components that its base weight does not speak for are left out.

"Finetuning with Reserved Majority for Noise Reduction" (Jiang et al., 2025). Of the update
B A = U S V^T the c largest components are kept, where c, from a grid of ranks, has the left space
most alike to that of the r largest components of the weight W, whose basis is U_r:

    phi_c = [O_c + (r - c) (r - O_c) / (out - c)] / r,   O_c = sum over i <= c of ||U_r^T u_i||^2

The second term is what r - c more directions at random would add. So phi grows with a component as
long as that one lies in the weight's space by more than chance. (The published code does not
compute this term but fills up U with what the SVD returns for singular values of zero, so that its
phi is this one plus noise.) The arithmetic is in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradex.adapters.factors import product_svd
from gradex.errors import GradexError

Search = Literal["exact", "random"]
Method = Literal["lora", "random", "minor", "l2", "cosine"]
NEGLIGIBLE = 1e-6  # singular values below this share of the largest are rounding
FEW = 16  # this many times fewer vectors than a weight has are found one by one
TIE = 1e-9  # scores this close are equal, and the lower rank is kept


@dataclass(frozen=True)
class Rule:
    """Which ranks are tried, and which of them is kept.

    `search`: the best approximation of every rank, or the published sketch of it by random
    directions. `method`: by what a rank is kept. `lora` is NoRM; `random` and `minor` keep
    components by chance, or the smallest ones, and choose how many by the same phi; `l2` and
    `cosine` keep the largest, as many as bring the update nearest to W by distance, or by angle.
    The published code has these for comparison, but other than lora never tries the full rank, and
    its `minorlora` keeps what `lora` does.
    """

    step: float = 0.1
    range_start: int = 1
    search: Search = "exact"
    method: Method = "lora"


class Components(NamedTuple):
    """A product u diag(s) vh, the largest singular values first."""

    u: Float[Tensor, "out rank"]
    s: Float[Tensor, " rank"]
    vh: Float[Tensor, "rank in"]


@dataclass(frozen=True)
class Below:
    """The weight below an adapter: its main left space, at what scale the update is added to it,
    and the rank of the adapter."""

    weight: Float[Tensor, "out in"]
    space: Float[Tensor, "out main"]
    scale: float
    rank: int


@dataclass(frozen=True)
class Reduced:
    """What is kept. `overlap` is phi, which at full rank was `overlap_whole`; `energy` the share
    of the update's squared norm."""

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    rank: int
    overlap: float
    overlap_whole: float
    energy: float


def reduce_pair(
    a: Float[Tensor, "rank in"],
    b: Float[Tensor, "out rank"],
    weight: Float[Tensor, "out in"],
    *,
    step: float = 0.1,
    range_start: int = 1,
) -> tuple[Tensor, Tensor, int]:
    """A', B' and their rank. Where the full rank is kept, A and B as they are."""
    found = reduce_update(a, b, weight, rule=Rule(step, range_start))
    return found.a, found.b, found.rank


def reduce_update(
    a: Float[Tensor, "rank in"],
    b: Float[Tensor, "out rank"],
    weight: Float[Tensor, "out in"],
    *,
    rule: Rule,
    scale: float = 1.0,
    seed: int = 0,
) -> Reduced:
    """The update scale B A by the rule. Only `l2` looks at the scale, only what is random at the
    seed."""
    _require_finite(a, b, weight, torch.tensor(scale))
    generator = torch.Generator().manual_seed(seed)
    precise = weight.double()
    pair = a.to(precise), b.to(precise)
    whole = components_of(*pair)
    below = Below(precise, left_space(precise, len(a)), scale, len(a))
    parts = _candidates(pair, whole, rule, generator)
    score = SCORES.get(rule.method, similarity)
    kept = _smallest_best({rank: score(part, below) for rank, part in parts.items()})
    part = parts[kept]
    new_a, new_b = (a, b) if kept == len(a) else (part.vh.to(a), (part.u * part.s).to(b))
    return Reduced(
        new_a.contiguous(), new_b.contiguous(), len(new_a),
        overlap=similarity(part, below), overlap_whole=similarity(whole, below),
        energy=energy(part, whole),
    )  # fmt: skip


def candidate_ranks(rank: int, *, step: float, range_start: int) -> list[int]:
    """The ranks step k r from k = `range_start` on, and r itself; each once, in order."""
    slack = 1e-9  # 0.1 * 3 * 10 is not quite 3
    if step * rank <= 1:  # which skips no rank, in however many steps
        return [*range(max(1, int(step * range_start * rank + slack)), rank), rank]
    last = math.ceil(1 / step - slack)
    tried = {max(1, int(step * k * rank + slack)) for k in range(range_start, last)}
    return sorted(tried | {rank})


def components_of(a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"]) -> Components:
    """The singular components of B A; of values that are rounding, zero."""
    u, s, vh = product_svd(a, b)
    return Components(u, s.where(s > NEGLIGIBLE * s[0], 0), vh)


def left_space(weight: Float[Tensor, "out in"], size: int) -> Float[Tensor, "out main"]:
    """A basis of the left space of the `size` largest singular values, or of all that are not
    rounding."""
    few = weight.device.type == "cpu" and size * FEW < min(weight.shape)
    u, values = (_by_lanczos if few else _by_gram)(weight, size)
    main = values > values.max() * NEGLIGIBLE
    if not main.any():
        raise GradexError("its base weight is zero, and has no space to compare the adapter with")
    return u[:, main]


def _by_gram(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """By the eigenvectors of the smaller of the two Gram matrices."""
    out, inner = weight.shape
    squares, vectors = torch.linalg.eigh(weight @ weight.T if out <= inner else weight.T @ weight)
    values, found = squares[-size:].clamp(min=0).sqrt(), vectors[:, -size:]
    return (found if out <= inner else weight @ found / values), values


def _by_lanczos(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same, to rounding, without the vectors that are not asked for; several times as fast."""
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(0).normal(size=min(weight.shape))
    u, values, _ = svds(weight.numpy(), k=size, v0=start, return_singular_vectors="u")
    return torch.from_numpy(u.copy()), torch.from_numpy(values.copy())


def similarity(part: Components, below: Below) -> float:
    """phi of the module's first lines, with what the weight's main space has of directions."""
    live = part.u[:, part.s > 0]
    (out, count), main = live.shape, below.space.shape[1]
    overlap = float((below.space.T @ live).square().sum())
    more = min(below.rank, out) - count
    chance = more * (main - overlap) / (out - count) if more else 0.0
    return (overlap + chance) / main


def _nearness(part: Components, below: Below) -> float:
    """Minus the distance of the update from the weight, in units of the weight."""
    update = below.scale * (part.u * part.s) @ part.vh
    return -float((update - below.weight).norm() / below.weight.norm())


def _cosine(part: Components, below: Below) -> float:
    """Between the update and the weight, both as one long vector."""
    along = ((part.u.T @ below.weight) * part.vh).sum(1)
    length = part.s.norm() * below.weight.norm()
    return float(part.s @ along / length) if length else 0.0


SCORES: dict[str, Callable[[Components, Below], float]] = {"l2": _nearness, "cosine": _cosine}


def _candidates(
    pair: tuple[Tensor, Tensor], whole: Components, rule: Rule, generator: torch.Generator
) -> dict[int, Components]:
    """What would be kept, by rank."""
    rank = len(pair[0])
    ranks = candidate_ranks(rank, step=rule.step, range_start=rule.range_start)
    if rule.search == "random":
        return {c: _sketched(*pair, c, generator) if c < rank else whole for c in ranks}
    order = _order(len(whole.s), rule.method, generator).to(whole.s.device)
    return {c: _only(whole, order[:c].sort().values) if c < rank else whole for c in ranks}


def _order(count: int, method: Method, generator: torch.Generator) -> Tensor:
    """In which order components are kept."""
    if method == "random":
        return torch.randperm(count, generator=generator)
    return torch.arange(count).flip(0) if method == "minor" else torch.arange(count)


def _only(whole: Components, places: Tensor) -> Components:
    return Components(whole.u[:, places], whole.s[places], whole.vh[places])


def _sketched(a: Tensor, b: Tensor, rank: int, generator: torch.Generator) -> Components:
    """Q Q^T B A with Q a basis of B A times random directions, as many as the rank (Halko et al.,
    2011, with neither more directions than that nor power iterations)."""
    drawn = torch.randn(a.shape[1], rank, generator=generator, dtype=a.dtype).to(a.device)
    q, _ = torch.linalg.qr(b @ (a @ drawn))
    within = components_of(a, q.T @ b)
    return within._replace(u=q @ within.u)


def _smallest_best(scores: dict[int, float]) -> int:
    best = max(scores.values())
    return min(rank for rank, score in scores.items() if score >= best - TIE)


def energy(part: Components, whole: Components) -> float:
    """The share of the update's squared norm that a part of it has."""
    total = float(whole.s.square().sum())
    return float(part.s.square().sum()) / total if total else 1.0


def _require_finite(*matrices: Tensor) -> None:
    if not all(torch.isfinite(matrix).all() for matrix in matrices):
        raise GradexError("its matrices, its alpha or the weight below are not finite")
