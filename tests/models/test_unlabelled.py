"""The surrogate without answers: bounds, a slow loop, Bayes' rule, answers that are not read."""

import math

import numpy as np
import pytest
import torch

from gradex.models.load import BaseSpec, load_base
from gradex.models.unlabelled import (
    answer_logits,
    mutual_information,
    refined,
    unlabelled_surrogate,
)

KINDS = pytest.mark.parametrize(
    ("kind", "family"), [("llama", "causal"), ("t5", "seq2seq"), ("bert", "classifier")]
)


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
    assert unlabelled_surrogate(logits).item() == pytest.approx(-wanted, abs=1e-5)


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
    unlabelled_surrogate(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_half_floats_are_widened_first():
    assert mutual_information(some_logits(4, 3).bfloat16()).dtype == torch.float32
    assert refined(some_logits(4, 3).bfloat16(), some_logits(4, 3)).dtype == torch.float32


def test_refined_is_the_posterior():
    logits, odds = some_logits(4, 3), some_logits(4, 3, seed=1)
    joint = logits.softmax(-1) * odds.sigmoid()
    posterior = joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(refined(logits, odds).softmax(-1), posterior)


def test_a_discriminator_that_does_not_look_at_the_option_changes_nothing():
    logits, odds = some_logits(4, 3), some_logits(4, 1, seed=1).expand(4, 3)
    torch.testing.assert_close(refined(logits, odds).softmax(-1), logits.softmax(-1))


@KINDS
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_answer_is_predicted_and_not_read(model_folder, toy_batch, kind, family, side):
    model = load_base(BaseSpec(str(model_folder(kind)))).model
    examples, batch = toy_batch(family, padding_side=side)
    with torch.no_grad():
        found = answer_logits(model, batch, family)
        other = {key: value.clone() for key, value in batch.items()}
        is_answer = batch["labels"] != -100
        if family != "classifier":
            other["labels"][is_answer] = 5
        if family == "causal":
            other["input_ids"][is_answer] = 5
        assert len(found) == len(examples)
        torch.testing.assert_close(answer_logits(model, other, family), found)


@KINDS
def test_the_prediction_is_the_models_own(model_folder, toy_batch, kind, family):
    """The loss of a first label is the cross entropy of that prediction."""
    model = load_base(BaseSpec(str(model_folder(kind)))).model
    _, batch = toy_batch(family)
    first = batch["labels"].clone()
    if family == "causal":
        first[:, 3:] = -100  # an answer begins at the third token
    if family == "seq2seq":
        first[:, 1:] = -100
    with torch.no_grad():
        found = answer_logits(model, batch, family)
        own = model(**{**batch, "labels": first}).loss
    wanted = first[first != -100] if family != "classifier" else first
    torch.testing.assert_close(torch.nn.functional.cross_entropy(found, wanted), own)
