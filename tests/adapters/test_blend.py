"""A blend of adapters: the mean of their probabilities, written and scored like a model's."""

import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.blend import Blend
from gradex.adapters.folder import export, load_all
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder
from gradex.models.load import BaseSpec, load_base
from gradex.models.scoring import generate, score

ROWS = [
    to_row({"prompt": "x" * n + "=", "completion": "yz" * (1 + n % 3)}, "prompt_completion")
    for n in (1, 7, 3, 12, 5)
]
NAMES = ("one", "two")
KINDS = ["llama", "gpt2", "t5"]


@pytest.fixture
def members(model_folder, tmp_path):
    """members(kind): a base with two adapters that differ much, and its encoder."""

    def make(kind):
        spec = BaseSpec(str(model_folder(kind)))
        for seed, name in enumerate(NAMES):
            model = attach(load_base(spec), AdapterSpec(rank=4, alpha=8.0), seed=seed)
            drawn = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_(std=0.6, generator=drawn)
            export(model, tmp_path / kind / name, base_path="base", card=None)
        base = load_base(spec)
        model = load_all(base, {name: tmp_path / kind / name for name in NAMES})
        return model, Encoder(base.tokenizer, family=base.family, max_length=64)

    return make


def log_probs(model, name):
    model.set_adapter(name)
    return model(input_ids=torch.tensor([[1, 20, 30, 40]])).logits.log_softmax(-1)


@torch.no_grad()
def test_probabilities_are_averaged(members):
    model, _ = members("llama")
    one, two = (log_probs(model, name).exp() for name in NAMES)
    assert (one - two).abs().max() > 0.1 * one.max()
    mixed = Blend(model, {"one": 0.3, "two": 0.7})(input_ids=torch.tensor([[1, 20, 30, 40]]))
    torch.testing.assert_close(mixed.logits.exp(), 0.3 * one + 0.7 * two)


@pytest.mark.parametrize("kind", KINDS)
def test_all_weight_on_one_is_this_one(members, kind):
    """Its scores and its texts, with caches and padding, as transformers writes them."""
    model, encoder = members(kind)
    blend = Blend(model, {"one": 0.0, "two": 1.0})
    model.set_adapter("two")
    own, texts = score(model, ROWS, encoder, "exact_match"), generate(model, ROWS, encoder)
    model.set_adapter("one")
    assert generate(model, ROWS, encoder) != texts
    assert score(blend, ROWS, encoder, "exact_match") == pytest.approx(own, rel=1e-5)
    assert generate(blend, ROWS, encoder) == texts


@pytest.mark.parametrize("kind", KINDS)
def test_texts_do_not_depend_on_the_batches(members, kind):
    model, encoder = members(kind)
    blend = Blend(model, {"one": 0.5, "two": 0.5})
    together = generate(blend, ROWS, encoder)
    assert together == generate(blend, ROWS, encoder, tokens_per_batch=1)


@torch.no_grad()
def test_every_token_is_the_likeliest_of_the_blend(members):
    """A slow loop that reads everything again for each token."""
    model, encoder = members("gpt2")
    blend = Blend(model, {"one": 0.5, "two": 0.5})
    ids = torch.tensor(encoder.prompt_ids(ROWS[1]))[None]
    fast = blend.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, pad_token_id=0,
        eos_token_id=[-1],
    )  # fmt: skip
    for _ in range(6):
        best = blend(input_ids=ids).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, best[:, None]], dim=1)
    assert torch.equal(fast, ids)
