"""LoRA-GA: the gradient of the full weights, and a first step along it."""

import logging

import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.beginning import Beginning
from gradex.adapters.loraga import gradient_split, weight_gradients
from gradex.adapters.residual import ADAPTER, lora_layers, taken_out
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}
RANK, ALPHA, GAMMA = 3, 6.0, 16.0


@pytest.fixture
def base(model_folder):
    return lambda model="llama": load_base(BaseSpec(str(model_folder(model))))


def spec_of(**more) -> AdapterSpec:
    return AdapterSpec(rank=RANK, alpha=ALPHA, **more)


def drawn(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def split(weight, gradient, **more):
    generator = torch.Generator().manual_seed(0)
    return gradient_split(weight, gradient, RANK, ALPHA, gamma=GAMMA, generator=generator, **more)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_first_step_is_along_the_best_approximation_of_the_gradient(shape):
    """B B^T G + G A^T A = sqrt(out) / gamma times G in rank 2r."""
    weight, gradient = drawn(*shape), drawn(*shape, seed=1)
    a, b, residual = split(weight, gradient)
    torch.testing.assert_close(residual + ALPHA / RANK * b @ a, weight)
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    best = (u[:, : 2 * RANK] * s[: 2 * RANK]) @ vh[: 2 * RANK]
    step = b @ b.T @ gradient + gradient @ a.T @ a
    torch.testing.assert_close(step, shape[0] ** 0.5 / GAMMA * best)


def test_both_sides_are_orthogonal_and_of_one_size():
    a, b, _ = split(drawn(12, 20), drawn(12, 20, seed=1))
    size = 12**0.5 / GAMMA * torch.eye(RANK, dtype=torch.float64)
    torch.testing.assert_close(a @ a.T, size)
    torch.testing.assert_close(b.T @ b, size)


def test_the_size_of_the_gradient_does_not_matter():
    weight, gradient = drawn(12, 20), drawn(12, 20, seed=1)
    for one, other in zip(split(weight, gradient), split(weight, 1e-6 * gradient), strict=True):
        torch.testing.assert_close(one, other)


def gradients_by_backward(model, batches, family):
    """Of every base weight, by autograd alone."""
    rows = sum(len(batch["labels"]) for batch in batches)
    model.requires_grad_(True)
    for batch in batches:
        (sample_objectives(model, dict(batch), family)[0]["loss"].sum() / rows).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model", FAMILIES)
def test_gradients_are_those_of_the_mean_loss(base, toy_batch, model):
    """Of batches of one and of three rows, of a model that is left as it was."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    batches = [{k: v[part] for k, v in batch.items()} for part in (slice(1), slice(1, 4))]
    expected = gradients_by_backward(base(model).model, batches, family)
    adapted = attach(base(model), spec_of(), seed=0).train()
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    found = weight_gradients(adapted, Beginning(family, model, False, seed=0, batches=batches))
    for name, gradient in found.items():
        own = expected[name.removeprefix("base_model.model.") + ".weight"]
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-6)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == trained
    assert all(p.grad is None for p in adapted.parameters()) and adapted.training


@pytest.mark.parametrize("model", FAMILIES)
def test_every_layer_begins_with_its_gradient(base, toy_batch, model):
    """Also where the weights are kept as (in, out): what is taken out is of rank r and no more."""
    _, batch = toy_batch(FAMILIES[model])
    spec = spec_of(kind="loraga", options={"gamma": GAMMA})
    adapted = attach(base(model), spec, seed=0, batches=[batch])
    expected = gradients_by_backward(base(model).model, [batch], FAMILIES[model])
    for name, layer in lora_layers(adapted):
        gradient = expected[name.removeprefix("base_model.model.") + ".weight"]
        gradient = gradient.T if layer.fan_in_fan_out else gradient
        a = layer.lora_A[ADAPTER].weight.detach()
        scaled = (len(gradient) ** 0.5 / GAMMA) ** 0.5 * torch.linalg.svdvals(gradient)[:RANK]
        torch.testing.assert_close(torch.linalg.svdvals(gradient @ a.T), scaled)
    assert len(taken_out(adapted)) == len(list(lora_layers(adapted)))


def test_the_global_generator_is_not_read(base, toy_batch):
    _, batch = toy_batch("causal")
    spec = spec_of(kind="loraga", options={"gamma": GAMMA})
    torch.manual_seed(7)
    first = attach(base(), spec, seed=0, batches=[batch]).state_dict()
    state = torch.get_rng_state()
    again = attach(base(), spec, seed=0, batches=[batch]).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_rank_of_more_than_half_the_gradient_is_refused():
    with pytest.raises(GradexError, match=r"rank of 3 takes 6 directions.*only 5.*--lora_r"):
        split(drawn(5, 20), drawn(5, 20))


def test_a_gradient_of_low_rank_is_warned_of(caplog):
    weight = drawn(12, 20)
    with caplog.at_level(logging.WARNING):
        a, b, residual = split(weight, drawn(12, 2) @ drawn(2, 20), where="layers.0.q_proj")
    assert "layers.0.q_proj" in caplog.text and "rank of 2, of which 6" in caplog.text
    torch.testing.assert_close(residual + ALPHA / RANK * b @ a, weight)
    assert torch.isfinite(split(weight, torch.zeros(12, 20))[0]).all()
    assert "rank of 0" in caplog.text


def test_a_gradient_that_is_not_finite_is_refused(base, toy_batch):
    _, batch = toy_batch("causal")
    spoiled = base()
    spoiled.model.lm_head.weight.data[5] = float("nan")
    spec = spec_of(kind="loraga", options={"gamma": GAMMA})
    with pytest.raises(GradexError, match="gradient of the calibration rows is not finite"):
        attach(spoiled, spec, seed=0, batches=[batch])
