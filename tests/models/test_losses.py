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


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("kind", "family"), [("llama", "causal"), ("t5", "seq2seq")])
def test_the_head_sees_label_tokens_alone_and_says_the_same(
    model_folder, toy_batch, kind, family, side, by_sample
):
    model = load_base(BaseSpec(str(model_folder(kind)))).model
    _, batch = toy_batch(family, padding_side=side)
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        values, counts = sample_objectives(model, batch, family, by_sample=by_sample)
        handle.remove()
        model.get_output_embeddings = lambda: None
        plain, _ = sample_objectives(model, batch, family)
    labels = int(counts.sum())
    assert seen[0][:-1] == ((len(counts), int(counts.max())) if by_sample else (labels,))
    for name in ("loss", "margin"):
        torch.testing.assert_close(values[name], plain[name], rtol=1e-5, atol=1e-6)


def test_the_margins_gradient_is_that_of_its_formula():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    labels = torch.tensor([0, 3, 6, 1, 1])
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])

    def formula(logits):
        others = logits.masked_fill(torch.nn.functional.one_hot(labels, 7).bool(), float("-inf"))
        return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(1)

    slopes = []
    for function in (lambda z: margins(z, labels), formula):
        z = logits.clone().requires_grad_()
        (function(z) * weight).sum().backward()
        slopes.append(z.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)
