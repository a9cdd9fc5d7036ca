"""Killed and resumed is as never stopped, to the last bit, for every kind of adapter."""

import pytest
import torch

from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.models.load import BaseSpec, load_base
from gradex.training.fit import fit
from gradex.training.module import FineTuner
from gradex.training.recipe import Recipe

STEPS, ACCUMULATE = 6, 2


@pytest.fixture
def train(model_folder, tmp_path):
    """train(kind, name): trained with accumulation, and with dropout where the kind has it."""

    def run(kind: str, name: str, *, model: str = "llama"):
        dropout = 0.2 if KINDS[kind].dropout else 0.0
        spec = AdapterSpec(
            rank=4, alpha=8.0, dropout=dropout, kind=kind, options=parse_options(kind, [])
        )
        recipe = Recipe(
            BaseSpec(str(model_folder(model))), spec, max_steps=STEPS, learning_rate=1e-2,
            batch_size=3, accumulate=ACCUMULATE, warmup_steps=2, weight_decay=0.01, seed=3,
        )  # fmt: skip
        base = load_base(recipe.base)
        encoder = Encoder(base.tokenizer, family=base.family, max_length=64)
        rows = [
            to_row({"prompt": f"{i}=", "completion": "ab" * (i + 1)}, "prompt_completion")
            for i in range(10)
        ]
        examples, _ = encode_all(encoder, rows)
        return fit(
            recipe, base, examples=examples, encoder=encoder, folder=tmp_path / name, name="t"
        )

    return run


@pytest.fixture
def batches(monkeypatch):
    """The numbers of the batches that were trained on; the training dies in `batches.last`."""

    class Batches(list):
        last: int | None = None

    seen, step = Batches(), FineTuner.training_step

    def watched(self, batch, index):
        number = self.trainer.fit_loop.total_batch_idx
        if number == seen.last:
            raise KeyboardInterrupt
        seen.append(number)
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", watched)
    return seen


@pytest.fixture
def cut(train, batches):
    """cut(kind, [batch, ...]): a training that is killed in these, and resumed each time."""

    def run(kind: str, kills: list[int], **more):
        batches.clear()
        for batches.last in kills:
            with pytest.raises(KeyboardInterrupt):
                train(kind, "cut", **more)
        batches.last = None
        return train(kind, "cut", **more)

    return run


def require_same(first, second):
    """All weights and buffers, the base's among them, and every step's loss."""
    (model, losses), (other, other_losses) = first, second
    found = other.state_dict(keep_vars=True)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(found.pop(name), tensor), name
    assert not found and losses == other_losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_ends_in_the_same_weights(train, cut, batches, kind):
    """Twice it is killed: within an optimizer step, whose first batch is done again, and between
    two."""
    whole = train(kind, "whole")
    resumed = cut(kind, [5, 8])
    assert batches == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11]
    require_same(resumed, whole)


@pytest.mark.parametrize("kind", ["lora", "milora", "adalora"])
@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_on_other_models(train, cut, kind, model):
    whole = train(kind, "whole", model=model)
    require_same(cut(kind, [8], model=model), whole)
