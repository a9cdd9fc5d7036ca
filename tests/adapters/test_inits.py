"""Splits of a weight: what is taken out and what is left, in closed form."""

import logging

import pytest
import torch

from gradex.adapters import inits
from gradex.errors import GradexError

SHAPES = [(12, 20), (20, 12), (16, 16)]
RANK = 4
# Which singular components each split takes, of `count`.
SLICES = {
    inits.principal_svd: lambda count: slice(0, RANK),
    inits.minor_svd: lambda count: slice(count - RANK, count),
    inits.middle_svd: lambda count: slice((count - RANK) // 2, (count - RANK) // 2 + RANK),
}
ALL = [*SLICES, inits.first_of_qr]


def drawn(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fast(weight, rank, alpha, *, niter=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return inits.principal_svd_fast(weight, rank, alpha, niter=niter, generator=generator)


def close(found, expected, *, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.5, 4.0, 32.0])
@pytest.mark.parametrize("split", [*ALL, fast])
def test_residual_and_product_are_the_weight(split, shape, alpha):
    weight = drawn(*shape)
    a, b, residual = split(weight, RANK, alpha)
    assert a.shape == (RANK, shape[1]) and b.shape == (shape[0], RANK)
    close(residual + alpha / RANK * b @ a, weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("split", SLICES)
def test_the_chosen_singular_values_are_taken_out_and_the_others_are_left(split, shape):
    weight, alpha = drawn(*shape), 6.0
    values = torch.linalg.svdvals(weight)
    chosen = SLICES[split](len(values))
    a, b, residual = split(weight, RANK, alpha)
    close(torch.linalg.svdvals(alpha / RANK * b @ a)[:RANK], values[chosen])
    rest = torch.cat([values[: chosen.start], values[chosen.stop :], torch.zeros(RANK)])
    close(torch.linalg.svdvals(residual), rest)


@pytest.mark.parametrize("split", [*SLICES, fast])
def test_both_sides_have_the_same_share(split):
    """B^T B = A A^T, and both are diagonal."""
    a, b, _ = split(drawn(12, 20), RANK, 6.0)
    close(b.T @ b, a @ a.T)
    close(b.T @ b, (b.T @ b).diag().diag())


@pytest.mark.parametrize("split", SLICES)
def test_what_is_left_is_orthogonal_to_what_is_taken_out(split):
    a, b, residual = split(drawn(12, 20), RANK, 6.0)
    close(residual.T @ b, torch.zeros(20, RANK))
    close(residual @ a.T, torch.zeros(12, RANK))


@pytest.mark.parametrize("split", [*ALL, fast])
def test_double_precision_stays(split):
    weight = drawn(12, 20, dtype=torch.float64)
    a, b, residual = split(weight, RANK, 6.0)
    assert a.dtype == b.dtype == residual.dtype == torch.float64
    close(residual + 6.0 / RANK * b @ a, weight, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", ALL)
def test_half_precision_is_split_in_single(split, dtype):
    weight = drawn(12, 20).to(dtype)
    a, b, residual = split(weight, RANK, 6.0)
    assert a.dtype == b.dtype == residual.dtype == torch.float32
    close(residual + 6.0 / RANK * b @ a, weight.float())


@pytest.mark.parametrize("split", [*SLICES, fast])
def test_all_components_leave_nothing(split):
    close(split(drawn(6, 9), 6, 6.0)[2], torch.zeros(6, 9))


@pytest.mark.parametrize("split", SLICES)
def test_the_signs_are_fixed(split):
    """Those of the singular vectors of -W are the other way round in U or in V, not in both."""
    weight = drawn(12, 20)
    a, b, _ = split(weight, RANK, 6.0)
    other_a, other_b, _ = split(-weight, RANK, 6.0)
    close(other_a, -a)
    close(other_b, b)
    assert (b.gather(0, b.abs().argmax(0, keepdim=True)) > 0).all()


def test_the_first_of_qr_are_as_they_are():
    weight = drawn(12, 20)
    a, b, _ = inits.first_of_qr(weight, RANK, 6.0)
    close(b.T @ b, torch.eye(RANK))
    close((b @ a)[:, :RANK], weight[:, :RANK])


def test_power_iterations_come_to_the_principal_components():
    weight = drawn(60, 40)
    _, b, _ = inits.principal_svd(weight, RANK, 6.0)
    errors = [(fast(weight, RANK, 6.0, niter=n)[1] - b).abs().max() for n in (0, 16, 64)]
    assert errors[0] > 10 * errors[1] > 10 * errors[2] and errors[2] < 1e-4


def test_power_iterations_that_have_not_converged_leave_what_is_orthogonal():
    _, b, residual = fast(drawn(60, 40), RANK, 6.0, niter=0)
    close(residual.T @ b, torch.zeros(40, RANK), atol=1e-4)


def test_power_iterations_are_drawn_from_their_generator_alone():
    weight = drawn(60, 40)
    state = torch.get_rng_state()
    first, again, other = (fast(weight, RANK, 6.0, niter=0, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("split", [*ALL, fast])
def test_a_rank_that_the_weight_has_not_is_refused(split):
    with pytest.raises(GradexError, match=r"rank of 13.*12 x 20.*only 12.*--lora_r"):
        split(drawn(12, 20), 13, 6.0)


@pytest.mark.parametrize("split", [*ALL, fast])
def test_a_spoiled_weight_is_refused(split):
    weight = drawn(12, 20)
    weight[3, 3] = float("nan")
    with pytest.raises(GradexError, match="not finite"):
        split(weight, RANK, 6.0)


def test_a_weight_without_full_rank_is_warned_of(caplog):
    """Its smallest components are zero; of the largest, only those beyond its rank are."""
    weight = drawn(12, 2) @ drawn(2, 20, seed=1)
    with caplog.at_level(logging.WARNING):
        a, b, _ = inits.minor_svd(weight, RANK, 6.0, where="layers.0.q_proj")
    assert a.abs().max() < 1e-2 > b.abs().max()
    assert "layers.0.q_proj" in caplog.text and "4 of the 4" in caplog.text
    caplog.clear()
    inits.principal_svd(weight, RANK, 6.0)
    assert "2 of the 4" in caplog.text
    caplog.clear()
    inits.principal_svd(weight, 2, 6.0)
    inits.minor_svd(drawn(12, 20), RANK, 6.0)
    assert not caplog.text
