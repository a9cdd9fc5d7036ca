"""The surrogate without answers: its bounds, a slow loop, what it does not depend on."""

import math

import numpy as np
import pytest
import torch

from gradex.models.unlabelled import mutual_information


def some_logits(*shape: int, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entropy(p) -> float:
    return -sum(float(x) * math.log(x) for x in p if x > 0)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_it_is_the_entropy_of_the_mean_less_the_mean_entropy(size):
    logits = some_logits(5, 3, size=size)
    p = logits.double().softmax(-1).numpy()
    wanted = entropy(p.mean(0)) - np.mean([entropy(row) for row in p])
    assert mutual_information(logits).item() == pytest.approx(wanted, abs=1e-5)


def test_rows_that_are_alike_tell_nothing():
    assert mutual_information(some_logits(1, 7).repeat(4, 1)).item() == pytest.approx(0, abs=1e-6)
    assert mutual_information(some_logits(1, 7)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("rows", "options"), [(3, 8), (9, 3)])
def test_sure_and_different_predictions_reach_the_bound(rows, options):
    bound = math.log(min(rows, options))
    sure = 200 * torch.eye(options)[torch.arange(rows) % options]
    assert mutual_information(sure).item() == pytest.approx(bound, abs=1e-5)
    assert mutual_information(some_logits(rows, options, size=3)).item() < bound


def test_neither_the_order_nor_a_constant_matters():
    logits = some_logits(6, 4)
    value = mutual_information(logits)
    torch.testing.assert_close(mutual_information(logits.flip(0).flip(1)), value)
    torch.testing.assert_close(mutual_information(logits + torch.arange(6.0)[:, None]), value)


def test_its_gradient_is_finite_where_options_are_all_but_excluded():
    logits = torch.tensor([[500.0, 0.0, -500.0], [0.0, 500.0, -500.0]], requires_grad=True)
    mutual_information(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_half_floats_are_widened_first():
    assert mutual_information(some_logits(4, 3).bfloat16()).dtype == torch.float32
