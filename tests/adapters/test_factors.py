"""Low-rank products: the decomposition is exact, and a cut loses what it discards."""

import pytest
import torch

from gradex.adapters.factors import Factors, Target, cut_matrix, cut_product


@pytest.fixture
def product() -> Factors:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 20, generator=generator)
    return Factors(a, torch.randn(15, 6, generator=generator), scale=1.7)


@pytest.mark.parametrize("cut", [cut_product, lambda f, target: cut_matrix(f.update(), target)])
@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_a_cut_is_the_best_approximation(product, cut, rank):
    """Its error is exactly the discarded singular values: Eckart and Young."""
    made = cut(product, Target(rank=rank))
    assert made.factors.rank == min(rank, 6)
    singular = torch.linalg.svdvals(product.update().double())
    lost = (product.update() - made.factors.update()).double().norm()
    assert float(lost) == pytest.approx(float(singular[rank:].norm()), abs=1e-4)
    assert made.error == pytest.approx(float(singular[rank:].norm() / singular.norm()), abs=1e-6)


def test_energy_keeps_the_fewest_components_that_hold_it(product):
    singular = torch.linalg.svdvals(product.update()).square()
    for energy in (0.2, 0.5, 0.9, 0.99):
        made = cut_product(product, Target(energy=energy))
        kept = made.factors.rank
        assert singular[:kept].sum() >= energy * singular.sum() > singular[: kept - 1].sum()
        assert made.error**2 <= 1 - energy + 1e-6
    assert cut_product(product, Target(energy=1.0)).factors.rank == 6


def test_the_cut_does_not_know_how_the_product_was_written(product):
    """(A, B, s) -> (M A, B M^-1 / s, 1)."""
    mixed = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    other = Factors(mixed @ product.a, product.scale * product.b @ mixed.inverse())
    first, second = (cut_product(f, Target(rank=2)).factors.update() for f in (product, other))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [Target(), Target(rank=3), Target(energy=0.9)])
def test_nothing_is_kept_of_nothing(target):
    none = cut_matrix(torch.zeros(4, 5), target)
    assert none.factors.rank == 0 and none.error == 0
