"""Per-sample gradients equal a batch-of-one autograd loop, on every family and padding."""

import pytest
import torch

from gradex.adapters.spec import AdapterSpec, attach
from gradex.data.tokens import collate
from gradex.errors import GradexError
from gradex.gradients.per_sample import GradientPass, per_sample_gradients, trainable_layers
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}


@pytest.fixture
def adapted(model_folder):
    def make(kind: str):
        base = load_base(BaseSpec(str(model_folder(kind))))
        model = attach(base, AdapterSpec(rank=3, alpha=5.0), seed=0)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:  # away from B = 0, where half of the gradients vanish
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return make


def loop_gradients(model, examples, family, objective):
    """The obvious slow way: one backward a sample, parameters in the order of the layers."""
    rows = []
    for example in examples:
        model.zero_grad()
        batch = collate([example], family=family, pad_id=0)
        sample_objectives(model, batch, family)[0][objective].sum().backward()
        parts = []
        for layer in trainable_layers(model):
            parts.append(layer.module.weight.grad.flatten())
            if layer.has_bias:
                parts.append(layer.module.bias.grad)
        rows.append(torch.cat(parts))
    model.zero_grad()
    return torch.stack(rows)


@pytest.mark.parametrize("objective", ["loss", "margin"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_equals_a_loop_over_single_samples(adapted, toy_batch, kind, objective):
    family, model = FAMILIES[kind], adapted(kind)
    examples, batch = toy_batch(family)
    fast = per_sample_gradients(model, batch, family=family, differentiate=objective)
    slow = loop_gradients(model, examples, family, objective)
    assert slow.norm(dim=1).min() > 0
    assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_left_padding_gives_the_same_gradients(adapted, toy_batch, kind):
    model = adapted(kind)
    examples, batch = toy_batch("causal", padding_side="left")
    if kind == "gpt2":  # learned positions do not follow the mask by themselves
        examples = [e for e in examples if e.length == max(x.length for x in examples)]
        batch = collate(examples, family="causal", pad_id=0, padding_side="left")
    fast = per_sample_gradients(model, batch)
    slow = loop_gradients(model, examples, "causal", "loss")
    assert ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max() < 1e-5


def test_samples_are_invariant_to_their_batch(adapted, toy_batch):
    model = adapted("llama")
    examples, batch = toy_batch("causal")
    together = per_sample_gradients(model, batch)
    order = [2, 0, 3, 1]
    shuffled = collate([examples[i] for i in order], family="causal", pad_id=0)
    torch.testing.assert_close(
        per_sample_gradients(model, shuffled), together[order], rtol=1e-5, atol=1e-7
    )


def test_samples_sum_to_the_gradient_of_the_batch(adapted, toy_batch):
    model = adapted("llama")
    _, batch = toy_batch("causal")
    total = per_sample_gradients(model, batch).sum(0)
    sample_objectives(model, batch, "causal")[0]["loss"].sum().backward()
    whole = torch.cat([layer.module.weight.grad.flatten() for layer in trainable_layers(model)])
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-6)


def test_the_pass_leaves_the_model_as_it_was(adapted, toy_batch):
    model = adapted("llama")
    _, batch = toy_batch("causal")
    before = [(n, p.requires_grad) for n, p in model.named_parameters()]
    per_sample_gradients(model, batch)
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == before
    assert all(p.grad is None for p in model.parameters() if p.requires_grad)
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, torch.nn.Linear))


def test_no_weight_gradient_is_asked_of_autograd(adapted, toy_batch):
    model = adapted("llama")
    _, batch = toy_batch("causal")
    gradients = GradientPass(model, "causal")
    with gradients.hooked():
        assert not any(p.requires_grad for p in model.parameters())
        gradients.run(batch, {"loss": lambda gradient, offset: None})


def test_other_trainable_parameters_are_refused_by_name(adapted):
    model = adapted("llama")
    norm = next(p for n, p in model.named_parameters() if "layernorm" in n)
    norm.requires_grad_(True)
    with pytest.raises(GradexError, match="input_layernorm"):
        trainable_layers(model)
