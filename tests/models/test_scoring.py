"""Scores do not depend on the batches they are made in, and greedy texts are those of one row."""

import numpy as np
import pytest
import torch

from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.models import scoring
from gradex.models.load import BaseSpec, load_base
from gradex.models.scoring import generate, label_log_probs, row_losses, score

ROWS = [
    to_row({"prompt": "x" * n + "=", "completion": "yz" * (1 + n % 3)}, "prompt_completion")
    for n in (1, 7, 3, 12, 5)
]


@pytest.fixture
def loaded(model_folder):
    def make(kind):
        base = load_base(BaseSpec(str(model_folder(kind))))
        return base.model, Encoder(base.tokenizer, family=base.family, max_length=64)

    return make


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_losses_do_not_depend_on_the_batches(loaded, kind):
    model, encoder = loaded(kind)
    examples, _ = encode_all(encoder, ROWS)
    alone = row_losses(model, examples, encoder, tokens_per_batch=1)
    np.testing.assert_allclose(row_losses(model, examples, encoder), alone, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_label_tokens_have_the_losses_of_their_rows(loaded, kind):
    model, encoder = loaded(kind)
    examples, _ = encode_all(encoder, ROWS)
    found = label_log_probs(model, examples, encoder, tokens_per_batch=40)
    assert [len(own) for own in found] == [e.n_labels for e in examples]
    losses = [-own.mean() for own in found]
    np.testing.assert_allclose(losses, row_losses(model, examples, encoder), rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_texts_are_those_of_single_rows(loaded, kind):
    model, encoder = loaded(kind)
    together = generate(model, ROWS, encoder)
    assert together == generate(model, ROWS, encoder, tokens_per_batch=1)


def test_a_memorised_answer_is_scored_right(loaded):
    model, encoder = loaded("llama")
    examples, _ = encode_all(encoder, ROWS[:1])
    ids = torch.tensor(examples[0].input_ids)[None]
    labels = torch.tensor(examples[0].labels)[None]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    assert score(model, ROWS[:1], encoder, "exact_match")["exact_match"] == 1
    assert score(model, ROWS[:1], encoder, "loss").keys() == {"loss"}


@pytest.mark.parametrize(("said", "earned"), [("12", 1), ("The answer is 12.", 1), ("112", 0)])
def test_a_conversation_is_scored_by_its_answer(loaded, monkeypatch, said, earned):
    """Not by its last turn, which may say more, and by no part of a number."""
    turns = [{"from": "human", "value": "5+7="}, {"from": "gpt", "value": "5+7, not 11: see 112"}]
    row = to_row({"conversations": turns, "answer": "12"}, "sharegpt")
    monkeypatch.setattr(scoring, "generate", lambda *_: [said])
    model, encoder = loaded("llama")
    assert score(model, [row], encoder, "answer")["answer"] == earned
