"""Which components of an update are kept: what the score promises, and what must not matter."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from gradex.adapters.norm import (
    Below,
    Components,
    Rule,
    candidate_ranks,
    components_of,
    energy,
    left_space,
    reduce_pair,
    reduce_update,
    similarity,
)
from gradex.errors import GradexError

OUT, IN, RANK = 40, 30, 10


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(drawn(rows, columns, seed=seed))[0]


def weight_of(u: torch.Tensor, *, seed: int = 1) -> torch.Tensor:
    """A weight whose left singular vectors are the columns of u, in order."""
    count = u.shape[1]
    values = torch.linspace(5, 1, count, dtype=torch.float64)
    return u * values @ orthonormal(IN, count, seed=seed).T


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, B and W of an update of which five components lie in W's main space and five outside."""
    u = orthonormal(OUT, OUT, seed=seed)
    chosen = torch.cat([u[:, :5], u[:, 25:30]], dim=1)
    values = 0.8 ** torch.arange(RANK, dtype=torch.float64)
    mixed = drawn(RANK, RANK, seed=seed + 1)
    b = chosen * values @ mixed
    a = torch.linalg.inv(mixed) @ orthonormal(IN, RANK, seed=seed + 2).T
    return a, b, weight_of(u[:, :20], seed=seed + 3)


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        drawn(RANK, IN, seed=3 * seed),
        drawn(OUT, RANK, seed=3 * seed + 1),
        drawn(OUT, IN, seed=3 * seed + 2),
    )


SEEDS = pytest.mark.parametrize("seed", range(5))
METHODS = pytest.mark.parametrize("method", ["lora", "random", "minor", "l2", "cosine"])


def first(whole: Components, count: int) -> Components:
    return Components(whole.u[:, :count], whole.s[:count], whole.vh[:count])


def literal_phi(a, b, weight, kept: int, *, draws: int) -> float:
    """As published, averaged over completions that are drawn at random."""
    main = torch.linalg.svd(weight)[0][:, :RANK]
    u = torch.linalg.svd(b @ a)[0][:, :kept]
    values = []
    for seed in range(draws):
        more = drawn(OUT, RANK - kept, seed=seed)
        filled = torch.linalg.qr(torch.cat([u, more], dim=1))[0]
        values.append(float((filled.T @ main).square().sum()) / RANK)
    return float(np.mean(values))


# Which rank.


def test_the_planted_majority_is_kept():
    a, b, weight = case()
    assert reduce_pair(a, b, weight)[2] == 5


@pytest.mark.parametrize("kept", [2, 5, 9])
def test_phi_is_the_mean_of_the_published_one_over_random_completions(kept):
    for a, b, weight in (case(), random_case(0)):
        below = Below(weight, left_space(weight, RANK), scale=1.0, rank=RANK)
        ours = similarity(first(components_of(a, b), kept), below)
        assert abs(ours - literal_phi(a, b, weight, kept, draws=300)) < 0.01


@SEEDS
def test_the_rank_is_that_of_the_largest_phi_on_the_grid(seed):
    """Against the formula, written out with full singular value decompositions."""
    a, b, weight = random_case(seed)
    main = torch.linalg.svd(weight)[0][:, :RANK]
    u = torch.linalg.svd(b @ a)[0]
    overlap = (main.T @ u[:, :RANK]).square().sum(0).cumsum(0)
    phi = {}
    for c in candidate_ranks(RANK, step=0.2, range_start=1):
        summed = float(overlap[c - 1])
        phi[c] = (summed + (RANK - c) * (RANK - summed) / (OUT - c)) / RANK
    found = reduce_update(a, b, weight, rule=Rule(step=0.2))
    assert found.rank == max(phi, key=phi.get)
    assert found.overlap == pytest.approx(phi[found.rank], abs=1e-9)
    assert found.overlap_whole == pytest.approx(phi[RANK], abs=1e-9)


def test_an_update_in_the_weights_own_space_is_kept_whole():
    u = orthonormal(OUT, 20)
    a, b = drawn(RANK, IN, seed=1), u[:, :RANK] @ drawn(RANK, RANK, seed=2)
    found = reduce_update(a, b, weight_of(u), rule=Rule())
    assert found.rank == RANK
    assert found.overlap == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("step", "start"), [(0.1, 1), (0.1, 4), (0.25, 2)])
def test_an_update_outside_of_it_keeps_the_lowest_rank_that_is_tried(step, start):
    u = orthonormal(OUT, OUT)
    a, b = drawn(RANK, IN, seed=1), u[:, 20 : 20 + RANK] @ drawn(RANK, RANK, seed=2)
    _, _, rank = reduce_pair(a, b, weight_of(u[:, :20]), step=step, range_start=start)
    assert rank == candidate_ranks(RANK, step=step, range_start=start)[0]


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 10, 16, 17, 64])
@pytest.mark.parametrize("step", [0.01, 0.05, 0.07, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("start", [1, 2, 5, 1000])
def test_the_grid(rank, step, start):
    grid = candidate_ranks(rank, step=step, range_start=start)
    assert grid == sorted(set(grid)) and grid[-1] == rank and grid[0] >= 1
    lowest = max(1, math.floor(step * start * rank + 1e-9))
    assert grid[0] == min(rank, lowest)
    assert all(high - low <= step * rank + 1 for low, high in pairwise(grid))


def test_the_published_grid():
    assert candidate_ranks(20, step=0.1, range_start=5) == [10, 12, 14, 16, 18, 20]
    assert candidate_ranks(10, step=0.1, range_start=1) == list(range(1, 11))


# What must not matter.


@SEEDS
def test_neither_the_gauge_nor_a_scale_matters(seed):
    a, b, weight = random_case(seed)
    mixed = drawn(RANK, RANK, seed=99)
    plain = reduce_update(a, b, weight, rule=Rule())
    for other_a, other_b, other_weight, by in (
        (mixed @ a, b @ torch.linalg.inv(mixed), weight, 1.0),
        (3 * a, 7 * b, weight, 21.0),
        (a, b, 0.01 * weight, 1.0),
    ):
        found = reduce_update(other_a, other_b, other_weight, rule=Rule())
        assert found.rank == plain.rank
        torch.testing.assert_close(found.b @ found.a, by * plain.b @ plain.a)
        assert found.overlap == pytest.approx(plain.overlap, abs=1e-9)
        assert found.energy == pytest.approx(plain.energy, abs=1e-9)


def test_a_rank_that_the_update_does_not_use_is_not_kept():
    """Rows of zeros, or doubled ones: components of zero have no direction to be alike in."""
    a, b, weight = case()
    wide_a = torch.cat([a, a[:3], torch.zeros(2, IN)])
    wide_b = torch.cat([b, 0 * b[:, :3], drawn(OUT, 2, seed=7)], dim=1)
    found = reduce_update(wide_a, wide_b, weight, rule=Rule(step=1 / 15))
    torch.testing.assert_close(found.b @ found.a, reduce_at(a, b, found.rank))
    assert found.rank <= RANK


def test_an_untrained_adapter_keeps_the_lowest_rank():
    a, _, weight = case()
    found = reduce_update(a, torch.zeros(OUT, RANK), weight.float(), rule=Rule())
    assert found.rank == 1 and not found.b.any()
    assert found.energy == 1 and torch.isfinite(found.a).all()


# What is kept.


def reduce_at(a, b, rank: int) -> torch.Tensor:
    """The best approximation of B A of a rank (Eckart and Young)."""
    u, s, vh = torch.linalg.svd(b @ a)
    return u[:, :rank] * s[:rank] @ vh[:rank]


@SEEDS
def test_it_is_the_best_approximation_in_orthogonal_components(seed):
    a, b, weight = random_case(seed)
    found = reduce_update(a, b, weight, rule=Rule())
    assert found.rank < RANK
    torch.testing.assert_close(found.b @ found.a, reduce_at(a, b, found.rank))
    torch.testing.assert_close(found.a @ found.a.T, torch.eye(found.rank).to(a))
    gram = found.b.T @ found.b
    torch.testing.assert_close(gram, gram.diag().diag())
    assert (gram.diag().diff() < 0).all()


@SEEDS
def test_energy_grows_with_every_component_to_all_of_it(seed):
    whole = components_of(*random_case(seed)[:2])
    shares = [energy(first(whole, count), whole) for count in range(1, RANK + 1)]
    assert all(low < high for low, high in pairwise(shares)) and shares[-1] == 1
    found = reduce_update(*random_case(seed), rule=Rule())
    assert found.energy == pytest.approx(shares[found.rank - 1])
    product = found.b @ found.a
    assert found.energy == pytest.approx(float(product.norm() / whole.s.norm()) ** 2)


@METHODS
@pytest.mark.parametrize("search", ["exact", "random"])
def test_where_all_is_kept_nothing_is_touched(method, search):
    a, b, weight = (matrix.float() for matrix in random_case(0))
    found = reduce_update(a, b, weight, rule=Rule(0.1, 10, search, method))
    assert found.rank == RANK and found.energy == 1
    assert torch.equal(found.a, a) and torch.equal(found.b, b)


def test_shapes_that_are_smaller_than_the_rank():
    a, b, weight = drawn(12, 5), drawn(7, 12, seed=1), drawn(7, 5, seed=2)
    found = reduce_update(a, b, weight, rule=Rule())
    assert found.rank <= 12 and len(found.a) == found.b.shape[1] == found.rank
    assert 0 <= found.overlap <= 1 + 1e-9


def test_half_precision_in_and_out():
    a, b, weight = (matrix.bfloat16() for matrix in case())
    found = reduce_update(a, b, weight, rule=Rule())
    assert found.a.dtype == found.b.dtype == torch.bfloat16
    assert found.rank == 5


SIZES = pytest.mark.parametrize("size", [1, 6])  # of a few vectors, and of many


@SIZES
@pytest.mark.parametrize("shape", [(OUT, IN), (IN, OUT), (IN, IN)])
def test_the_left_space_is_that_of_a_full_decomposition(shape, size):
    weight = drawn(*shape)
    space = left_space(weight, size)
    u = torch.linalg.svd(weight)[0][:, :size]
    torch.testing.assert_close(space @ space.T, u @ u.T)
    torch.testing.assert_close(space.T @ space, torch.eye(size).to(space))


@SIZES
@pytest.mark.parametrize("rows", [100, 160])
def test_of_a_weight_of_low_rank_only_its_own_space_counts(rows, size):
    weight = orthonormal(rows, 3) @ drawn(3, 120)
    for one in (weight, 1e-3 * weight):
        assert left_space(one, size).shape == (rows, min(3, size))


def test_a_weight_without_a_space_is_refused():
    a, b, _ = case()
    with pytest.raises(GradexError, match="base weight is zero"):
        reduce_pair(a, b, torch.zeros(OUT, IN))
    with pytest.raises(GradexError, match="not finite"):
        reduce_pair(a, b * math.nan, torch.ones(OUT, IN))
    with pytest.raises(GradexError, match=r"its alpha .*not finite"):
        reduce_update(a, b, torch.ones(OUT, IN), rule=Rule(), scale=math.nan)


@pytest.mark.parametrize("rank", [1, 3, 8, 10])
def test_steps_finer_than_a_rank_try_every_rank(rank):
    """At once, in however many steps."""
    for step in (0.1, 0.02, 1e-3, 1 / rank):
        for start in (1, 2, 7, 40):
            if step * rank > 1:
                continue
            by_steps = {max(1, int(step * k * rank + 1e-9)) for k in range(start, 1001)}
            expected = sorted({c for c in by_steps if c < rank} | {rank})
            assert candidate_ranks(rank, step=step, range_start=start) == expected
    assert candidate_ranks(rank, step=1e-12, range_start=1) == [*range(1, rank + 1)]


# For comparison.


def test_the_published_sketch_is_a_projection_of_the_update():
    """Onto as many random directions as are kept; drawn by the seed alone."""
    a, b, weight = case()
    rule = Rule(search="random")
    found = reduce_update(a, b, weight, rule=rule, seed=3)
    again = reduce_update(a, b, weight, rule=rule, seed=3)
    assert torch.equal(found.a, again.a) and torch.equal(found.b, again.b)
    q = torch.linalg.qr(found.b)[0]
    torch.testing.assert_close(q @ q.T @ b @ a, found.b @ found.a)
    torch.testing.assert_close(found.a @ found.a.T, torch.eye(found.rank).to(a))
    others = [reduce_update(a, b, weight, rule=rule, seed=seed) for seed in range(4)]
    assert len({other.energy for other in others}) == 4
    for other in others:
        best = reduce_at(a, b, other.rank).norm() / (b @ a).norm()
        assert other.energy < float(best) ** 2


def test_minor_keeps_the_smallest_and_random_some_of_the_components():
    """In an update whose small components are those that are alike."""
    a, b, weight = case()
    u, s, vh = components_of(a, b)
    b, values = u.flip(1) * s, s
    minor = reduce_update(vh, b, weight, rule=Rule(method="minor"))
    assert minor.rank == 5
    torch.testing.assert_close(minor.b.norm(dim=0), values[5:])
    kept = set()
    for seed in range(5):
        norms = reduce_update(vh, b, weight, rule=Rule(method="random"), seed=seed).b.norm(dim=0)
        places = (norms[:, None] - values).abs().argmin(1)
        torch.testing.assert_close(norms, values[places])
        assert len(places.unique()) == len(places)
        kept.add(tuple(places.tolist()))
    assert len(kept) > 1


@SEEDS
def test_l2_and_cosine_against_slow_loops(seed):
    a, b, weight = random_case(seed)
    weight += 0.05 * reduce_at(a, b, 4)  # so that some of the update is alike
    scale = 0.1
    grid = candidate_ranks(RANK, step=0.1, range_start=1)
    updates = {c: scale * reduce_at(a, b, c) for c in grid}
    distance = {c: float((update - weight).norm()) for c, update in updates.items()}
    cosine = {
        c: float((update * weight).sum() / update.norm() / weight.norm())
        for c, update in updates.items()
    }
    l2 = reduce_update(a, b, weight, rule=Rule(method="l2"), scale=scale)
    angle = reduce_update(a, b, weight, rule=Rule(method="cosine"), scale=scale)
    assert l2.rank == min(distance, key=distance.get)
    assert angle.rank == max(cosine, key=cosine.get)
