"""AdaLoRA in a training: once an optimizer step, told of without its penalty, saved as trained."""

import logging

import pytest
import torch

from gradex.adapters.adalora import Allocator, kept_ranks
from gradex.adapters.folder import export, load
from gradex.adapters.kinds import parse_options
from gradex.adapters.points import points_in
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, collate, encode_all
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives
from gradex.training.begin import Start
from gradex.training.fit import fit
from gradex.training.module import FineTuner
from gradex.training.recipe import Recipe

STEPS = 12
SETTINGS = ("tinit=2", "tfinal=3", "deltaT=2")


@pytest.fixture
def world(model_folder):
    """A base model, its encoder, and ten rows."""
    base = load_base(BaseSpec(str(model_folder("llama"))))
    encoder = Encoder(base.tokenizer, family="causal", max_length=64)
    rows = [
        to_row({"prompt": f"{i}=", "completion": "abab"}, "prompt_completion") for i in range(10)
    ]
    return encoder, encode_all(encoder, rows)[0]


@pytest.fixture
def new_base(model_folder):
    return lambda: load_base(BaseSpec(str(model_folder("llama"))))


@pytest.fixture
def train(model_folder, new_base, world, tmp_path):
    encoder, examples = world

    def run(name: str, *settings: str, kind: str = "adalora", start=None, keep_at=(), **more):
        spec = AdapterSpec(rank=2, alpha=6.0, kind=kind, options=parse_options(kind, settings))
        recipe = {"max_steps": STEPS, "learning_rate": 1e-2, "batch_size": 4} | more
        return fit(
            Recipe(BaseSpec(str(model_folder("llama"))), spec, **recipe), new_base(),
            examples=examples, encoder=encoder, folder=tmp_path / name, name="t",
            start=Start(start), keep_at=keep_at,
        )  # fmt: skip

    return run


@pytest.fixture
def losses(world):
    encoder, examples = world
    batch = collate(examples, family="causal", pad_id=encoder.tokenizer.pad_token_id)

    def of(model):
        with torch.no_grad():
            return sample_objectives(model.eval(), dict(batch), "causal")[0]["loss"]

    return of


def kept(model) -> list[int]:
    return [rank["kept"] for rank in kept_ranks(model).values()]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_are_dealt_out_once_after_every_step(train, monkeypatch, accumulate):
    """By the gradients of the step, all batches' together and clipped to a norm of 1."""
    steps, norms, after_step = [], [], Allocator.after_step

    def watched(self, step):
        steps.append(step)
        gradients = [p.grad for _, p in self._parameters()]
        norms.append(torch.stack([g.norm() for g in gradients]).norm())
        after_step(self, step)

    monkeypatch.setattr(Allocator, "after_step", watched)
    model, _ = train("a", *SETTINGS, "orth_reg_weight=200", accumulate=accumulate)
    assert steps == list(range(1, STEPS + 1))
    torch.testing.assert_close(torch.stack(norms), torch.ones(STEPS), rtol=1e-3, atol=0)
    assert sum(kept(model)) == 2 * 14 and len(kept(model)) == 14


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_losses_told_are_those_of_the_rows(train, monkeypatch, accumulate):
    """Whatever the penalty, whose gradient is in every step but not in what is told."""
    rows, step = [], FineTuner.training_step

    def watched(self, batch, index):
        value = sample_objectives(self.model, batch, "causal")[0]["loss"].mean().item()
        rows.append(value)
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", watched)
    _, told = train("heavy", "orth_reg_weight=10", accumulate=accumulate)
    by_step = torch.tensor(rows).view(STEPS, accumulate).mean(1)
    torch.testing.assert_close(torch.tensor(told), by_step)
    _, light = train("light", "orth_reg_weight=0", accumulate=accumulate)
    assert told[0] == light[0] and told[-1] != light[-1]


def test_kept_adapters_are_those_of_their_steps(train, monkeypatch, losses, new_base, tmp_path):
    """At deals and between them: before any, grown again, dealt, settled."""
    seen, step = {}, FineTuner.training_step

    def watched(self, batch, index):
        seen[self.global_step] = losses(self.model)
        self.model.train()
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", watched)
    points = [1, 3, 4, 5, 6, 9, 10]
    model, _ = train("a", *SETTINGS, keep_at=points)
    found = points_in(tmp_path / "a")
    assert list(found) == points
    for step, folder in found.items():
        torch.testing.assert_close(losses(load(new_base(), folder)), seen[step])
    export(model, tmp_path / "end", base_path="base", card=None)
    torch.testing.assert_close(losses(load(new_base(), tmp_path / "end")), losses(model))


def test_training_goes_on_with_the_ranks_there_are(train, losses, new_base, tmp_path):
    model, first = train("a", *SETTINGS)
    export(model, tmp_path / "end", base_path="base", card=None)
    more, then = train("b", *SETTINGS, start=tmp_path / "end", max_steps=5)
    assert kept(more) == kept(model) and then[-1] < first[0]
    assert not torch.allclose(losses(more), losses(model))
    export(more, tmp_path / "later", base_path="base", card=None)
    torch.testing.assert_close(losses(load(new_base(), tmp_path / "later")), losses(more))


def test_a_training_that_ends_early_says_so(train, monkeypatch, caplog):
    step = FineTuner.training_step

    def stopping(self, batch, index):
        self.trainer.should_stop = self.global_step >= 6
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", stopping)
    with caplog.at_level(logging.WARNING):
        model, _ = train("a", *SETTINGS)
    assert "ended after 7 steps, before step 9" in caplog.text
    assert sum(kept(model)) > 2 * 14


@pytest.mark.parametrize("kind", ["adalora", "lora"])
def test_training_in_bfloat16_on_a_processor(train, kind):
    """Trained numbers stay in float32, and come close to those of a training in float32."""
    model, told = train(kind, kind=kind, precision="bf16-mixed", max_steps=40)
    _, exact = train(f"{kind} in float32", kind=kind, max_steps=40)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert told[-1] < 0.95 * told[0]
    torch.testing.assert_close(torch.tensor(told), torch.tensor(exact), rtol=0.01, atol=0)
    if kind == "adalora":
        assert sum(kept(model)) == 2 * 14
