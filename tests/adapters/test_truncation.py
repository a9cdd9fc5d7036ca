"""Truncations: the least loss in the sense that was asked for, and what it does to outputs."""

import pytest
import torch

from gradex.adapters.corda import context_svd, damped
from gradex.adapters.covariance import Context
from gradex.adapters.truncation import METRICS, smallest, without

SHAPES = [(24, 16), (16, 24), (20, 20)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(width: int, *, seed: int = 1) -> torch.Tensor:
    """Of very different sizes, and correlated."""
    return drawn(40, width, seed=seed) * torch.logspace(-2, 1, width) @ drawn(width, width, seed=7)


def context_of(x: torch.Tensor) -> Context:
    return Context(x.T @ x / len(x), x.abs().mean(0))


def truncated(weight, x, metric, *, discard):
    context = context_of(x)
    found = smallest(
        weight, context, metric=metric, count=discard, measured=context.covariance
    )  # fmt: skip
    return without(weight, found, discard=discard)


@pytest.mark.parametrize("discard", [1, 5, 12])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_lost_is_the_sum_of_the_discarded_squares_and_the_least(shape, metric, discard):
    """Eckart and Young, in the sense of the metric: exactly, and no other truncation loses less."""
    weight, x = drawn(*shape), inputs(shape[1])

    def loss(other: str) -> torch.Tensor:
        lost = weight - truncated(weight, x, other, discard=discard)
        return METRICS[metric](lost, context_of(x)).square().sum()

    s = torch.linalg.svdvals(METRICS[metric](weight, context_of(x)))
    torch.testing.assert_close(loss(metric), s[-discard:].square().sum())
    assert all(loss(metric) < loss(other) for other in METRICS if other != metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_of_every_number_is_that_of_the_outputs(shape, metric):
    """On other inputs than those that chose the components."""
    weight, x, other = drawn(*shape), inputs(shape[1]), inputs(shape[1], seed=3)
    found = smallest(weight, context_of(x), metric=metric, count=12, measured=other.T @ other)
    outputs = other @ weight.T
    for discard in (0, 1, 5, 12):
        left = without(weight, found, discard=discard)
        error = (other @ left.T - outputs).norm() / outputs.norm()
        assert found.error(discard) == pytest.approx(float(error), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_none_is_the_weight_itself_and_all_are_nothing(shape, metric):
    weight, x = drawn(*shape), inputs(shape[1])
    assert torch.equal(truncated(weight, x, metric, discard=0), weight)
    nothing = truncated(weight, x, metric, discard=min(shape))
    torch.testing.assert_close(nothing, torch.zeros_like(weight), rtol=0, atol=1e-8)


def test_the_context_metric_is_that_of_the_adapter():
    weight, x = drawn(24, 16), inputs(16)
    left = truncated(weight, x, "context", discard=5)
    _, _, residual = context_svd(weight, context_of(x).covariance, 5, 8.0, largest=False)
    torch.testing.assert_close(left, residual)
    torch.testing.assert_close(
        METRICS["context"](weight, context_of(x)), weight @ damped(context_of(x).covariance)
    )


def test_a_half_precision_weight_is_taken_apart_in_float32():
    weight, x = drawn(24, 16), inputs(16)
    found = smallest(
        weight.bfloat16(), context_of(x), metric="context", count=4, measured=torch.eye(16)
    )
    assert found.directions.dtype == torch.float32
    left = without(weight.bfloat16(), found, discard=4)
    assert left.dtype == torch.bfloat16
    expected = truncated(weight.bfloat16().double(), x, "context", discard=4)
    torch.testing.assert_close(left.double(), expected, rtol=0, atol=0.02)
