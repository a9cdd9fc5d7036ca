"""Losses and margins: exact, finite, and one identity between them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import margins, sample_objectives


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_the_margin_gives_the_loss(seed, size):
    generator = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(6, 11, generator=generator)
    labels = torch.randint(11, (6,), generator=generator)
    loss = torch.nn.functional.softplus(-margins(logits, labels))
    wanted = cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gap", [-1e4, 0.0, 1e4])
def test_extreme_tokens_stay_finite_and_keep_their_gradient(gap):
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    margin = margins(logits, torch.tensor([0]))
    margin.sum().backward()
    assert margin.item() == gap and logits.grad[0, 0] == 1


def test_half_floats_are_widened_first():
    logits = torch.tensor([[12.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert margins(logits, torch.tensor([0])).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "family"), [("llama", "causal"), ("t5", "seq2seq"), ("bert", "classifier")]
)
def test_a_batch_agrees_with_the_models_own_loss(model_folder, toy_batch, kind, family):
    model = load_base(BaseSpec(str(model_folder(kind)))).model
    examples, batch = toy_batch(family)
    with torch.no_grad():
        values, counts = sample_objectives(model, batch, family)
        own = model(**batch).loss
    assert counts.tolist() == ([1] * 4 if family == "classifier" else [
        e.n_labels for e in examples
    ])  # fmt: skip
    torch.testing.assert_close((values["loss"] * counts).sum() / counts.sum(), own)
