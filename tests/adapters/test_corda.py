"""CorDA's closed forms: what is taken out, what is left, and in which sense that is the best."""

import logging

import pytest
import torch

from gradex.adapters.corda import context_svd, damped
from gradex.adapters.inits import minor_svd, principal_svd
from gradex.errors import GradexError

SHAPES = [(24, 16), (16, 24), (20, 20)]
RANK, ALPHA = 5, 13.0
SCALE = ALPHA / RANK


def drawn(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def covariance_of(width: int, *, rows: int = 7, dtype=torch.float64) -> torch.Tensor:
    """Of fewer rows than columns, as that of a wide layer on few tokens may be."""
    x = drawn(rows, width, seed=1, dtype=dtype)
    return x.T @ x / rows


def singular(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.linalg.svd(matrix, full_matrices=False)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.5, 5.0, 64.0])
def test_the_product_and_the_residual_are_the_weight(shape, largest, alpha):
    weight, covariance = (
        drawn(*shape, dtype=torch.float32),
        covariance_of(shape[1], dtype=torch.float32),
    )
    a, b, residual = context_svd(weight, covariance, RANK, alpha, largest=largest)
    assert a.shape == (RANK, shape[1]) and b.shape == (shape[0], RANK)
    torch.testing.assert_close(residual + alpha / RANK * b @ a, weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_factors_are_those_of_the_singular_components(shape, largest):
    """B = U sqrt(S / s) and A = sqrt(S / s) V^T F^-1, up to a sign of each component."""
    weight, covariance = drawn(*shape), covariance_of(shape[1])
    a, b, residual = context_svd(weight, covariance, RANK, ALPHA, largest=largest)
    f = damped(covariance)
    u, s, vt = singular(weight @ f)
    chosen = slice(0, RANK) if largest else slice(-RANK, None)
    u, s, vt = u[:, chosen], s[chosen], vt[chosen]
    root = (s / SCALE).sqrt()
    sign = (u * b).sum(0).sign()
    torch.testing.assert_close(b, sign * u * root)
    torch.testing.assert_close(a, (sign * root)[:, None] * torch.linalg.solve(f.T, vt.T).T)
    torch.testing.assert_close(b.T @ b, torch.diag(s) / SCALE, rtol=0, atol=1e-10)
    torch.testing.assert_close(singular(SCALE * b @ a @ f)[1][:RANK], s)
    torch.testing.assert_close(SCALE * b @ a, u @ u.T @ weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(u.T @ residual, torch.zeros(RANK, shape[1]).double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("largest", "plain"), [(True, principal_svd), (False, minor_svd)])
def test_without_a_context_it_is_the_plain_split(shape, largest, plain):
    """Inputs alike in all directions: PiSSA's residual of the largest, MiLoRA's of the smallest."""
    weight = drawn(*shape)
    _, _, residual = context_svd(
        weight, 3 * torch.eye(shape[1]).double(), RANK, ALPHA, largest=largest
    )
    torch.testing.assert_close(residual, plain(weight, RANK, ALPHA)[2], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_of_the_covariance_and_a_rotation_of_the_output_change_nothing(shape):
    weight, covariance = drawn(*shape), covariance_of(shape[1])
    turn = torch.linalg.qr(drawn(shape[0], shape[0], seed=2))[0]
    residual = context_svd(weight, covariance, RANK, ALPHA, largest=True)[2]
    larger = context_svd(weight, 1e4 * covariance, RANK, ALPHA, largest=True)[2]
    turned = context_svd(turn @ weight, covariance, RANK, ALPHA, largest=True)[2]
    torch.testing.assert_close(larger, residual)
    torch.testing.assert_close(turned, turn @ residual)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_components_leave_nothing(shape, largest):
    weight = drawn(*shape)
    _, _, residual = context_svd(
        weight, covariance_of(shape[1]), min(shape), ALPHA, largest=largest
    )
    torch.testing.assert_close(residual, torch.zeros_like(weight), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_ranks_of_largest_and_smallest_are_the_whole(shape):
    weight, covariance, rest = drawn(*shape), covariance_of(shape[1]), min(shape) - RANK
    first = context_svd(weight, covariance, RANK, ALPHA, largest=True)[2]
    second = context_svd(weight, covariance, rest, ALPHA, largest=False)[2]
    torch.testing.assert_close(first + second, weight)
    assert abs(float((first * second).sum())) < 1e-9


@pytest.mark.parametrize("largest", [True, False])
def test_an_input_that_dwarfs_the_others_costs_no_digits(largest):
    """As massive activations do: the split in float32 is that of float64, the smallest too."""
    x = drawn(400, 64, seed=1)
    x[:, 3] *= 1e4
    covariance, weight = x.T @ x, drawn(48, 64, dtype=torch.float32)
    a, b, residual = context_svd(weight, covariance, RANK, ALPHA, largest=largest)
    assert a.dtype == b.dtype == residual.dtype == torch.float32
    _, _, exact = context_svd(weight.double(), covariance, RANK, ALPHA, largest=largest)
    torch.testing.assert_close(residual.double(), exact, rtol=0, atol=2e-6)
    torch.testing.assert_close(residual + SCALE * b @ a, weight, rtol=0, atol=1e-5)


def test_the_damping_doubles_until_there_is_an_inverse():
    """An eigenvalue that the first damping cancels: F is singular but for rounding."""
    level = 2 / 3.01  # of the diagonal of diag(1, 1, -0.01 level)
    turn = torch.linalg.qr(drawn(3, 3))[0]
    singular_at_first = turn @ torch.diag(torch.tensor([1, 1, -0.01 * level]).double()) @ turn.T
    eye = torch.eye(3)
    found = damped(singular_at_first.float())
    torch.testing.assert_close(found, singular_at_first.float() + 0.02 * level * eye)
    sound = covariance_of(3, dtype=torch.float32)
    torch.testing.assert_close(damped(sound), sound + 0.01 * sound.diagonal().mean() * eye)


@pytest.mark.parametrize(
    "covariance", [torch.zeros(6, 6), torch.full((6, 6), torch.nan), -torch.eye(6)]
)
def test_a_covariance_of_nothing_is_refused(covariance):
    with pytest.raises(GradexError, match="sees nothing but zeros, or no finite numbers"):
        context_svd(drawn(4, 6), covariance, 2, 4.0, largest=True)


def test_a_rank_larger_than_the_weight_is_refused():
    with pytest.raises(GradexError, match="a rank of 17, but its 16 x 24 entries have only 16"):
        context_svd(drawn(16, 24), covariance_of(24), 17, 4.0, largest=True)


def test_components_of_size_zero_are_finite_and_warned_of(caplog):
    weight = (drawn(16, 3) @ drawn(3, 24, seed=5)).float()
    with caplog.at_level(logging.WARNING):
        a, b, residual = context_svd(weight, covariance_of(24), 5, ALPHA, largest=False)
    assert "5 components of size zero" in caplog.text
    assert a.isfinite().all() and b.isfinite().all()
    torch.testing.assert_close(residual + SCALE * b @ a, weight, rtol=0, atol=1e-5)
    caplog.clear()
    context_svd(drawn(16, 24), covariance_of(24), 16, ALPHA, largest=False)
    assert not caplog.text


def test_the_split_is_that_of_the_library():
    """peft computes the same residual from the same covariance, in float32."""
    corda = pytest.importorskip("peft.tuners.lora.corda", reason="needs attrs")
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig

    for method, largest in (("ipm", True), ("kpm", False)):
        layer = torch.nn.Linear(24, 16, bias=False)
        layer.weight.data = drawn(16, 24, dtype=torch.float32)
        layer.covariance_matrix = covariance_of(24, rows=40, dtype=torch.float32)
        layer.corda_method, layer.rank = method, RANK
        config = LoraConfig(r=RANK, target_modules=["0"], init_lora_weights="corda",
                            corda_config=CordaConfig(corda_method=method))  # fmt: skip
        model = torch.nn.Sequential(layer)
        corda.collect_eigens(model, config, verbose=False)
        corda.crop_corda_eigens(model, config)
        theirs = layer.eigens
        product = theirs.U_WC @ torch.diag(theirs.S_WC) @ theirs.V_WC.T
        _, _, residual = context_svd(
            layer.weight.data, layer.covariance_matrix, RANK, ALPHA, largest=largest
        )
        torch.testing.assert_close(residual, layer.weight.data - product, rtol=0, atol=1e-4)
