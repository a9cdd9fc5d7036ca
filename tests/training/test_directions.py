"""Mean gradients of all that a model trains: against autograd on everything in one batch."""

import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import label_logits, sample_objectives
from gradex.models.scoring import batch_on
from gradex.models.unlabelled import mutual_information
from gradex.training.directions import at_rest, loss_gradient, unlabelled_gradient

PROMPTS = ["a=", "bc=", "dad a=", "bad=", "bb cc="]


@pytest.fixture
def made(model_folder):
    """made(kind): an adapted model off its starting point, and its encoder."""

    def make(kind: str):
        base = load_base(BaseSpec(str(model_folder(kind))), labels=["0", "1", "2"])
        model = attach(base, AdapterSpec(rank=2, alpha=4.0, dropout=0.5), seed=0).train()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        classes = {"0": 0, "1": 1, "2": 2}
        return model, Encoder(base.tokenizer, family=base.family, label_ids=classes)

    return make


def rows(kind: str, answer: str):
    record = "labelled_text" if kind == "bert" else "prompt_completion"
    keys = ("text", "label") if kind == "bert" else ("prompt", "completion")
    return [to_row(dict(zip(keys, (p, answer), strict=True)), record) for p in PROMPTS]


def whole_gradient(model, value) -> torch.Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_the_gradient_of_the_mean_loss(made, kind):
    model, encoder = made(kind)
    examples, _ = encode_all(encoder, rows(kind, "1"))
    with at_rest(model):
        batch = batch_on(model, examples, encoder)
        loss = sample_objectives(model, batch, encoder.family)[0]["loss"].mean()
        wanted = whole_gradient(model, loss)
        for size in (1, 2, 8):
            found = loss_gradient(model, examples, encoder, batch_size=size)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert"])
def test_the_gradient_of_the_information_is_of_all_rows_together(made, kind):
    model, encoder = made(kind)
    examples, _ = encode_all(encoder, rows(kind, "1"), labelled=False)
    with at_rest(model):
        logits = label_logits(model, batch_on(model, examples, encoder), encoder.family).logits
        assert len(logits) == len(PROMPTS)
        wanted = whole_gradient(model, -mutual_information(logits))
        for size in (1, 2, 8):
            found = unlabelled_gradient(model, examples, encoder, batch_size=size)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert wanted.norm() > 0


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_an_unlabelled_row_does_not_show_its_label(made, kind):
    _, encoder = made(kind)
    for first, second in zip(rows(kind, "0"), rows(kind, "gone"), strict=True):
        one, other = encoder.unlabelled(first), encoder.unlabelled(second)
        assert one.input_ids.tolist() == other.input_ids.tolist() and one.n_labels == 1
        assert one.labels.tolist() == other.labels.tolist()


def test_it_is_asked_what_comes_after_the_prompt(made):
    model, encoder = made("llama")
    (row,) = rows("llama", "x")[:1]
    with at_rest(model), torch.no_grad():
        batch = batch_on(model, [encoder.unlabelled(row)], encoder)
        ids = torch.from_numpy(encoder.prompt_ids(row))[None]
        wanted = model(input_ids=ids).logits[:, -1]
        torch.testing.assert_close(label_logits(model, batch, "causal").logits, wanted)
