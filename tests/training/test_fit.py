"""Training: every row once a pass, the batch order a function of the seed, the loss falls."""

import pytest
import torch

from gradex.adapters import folder as adapters
from gradex.adapters.folder import export
from gradex.adapters.points import points_in
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.training import callbacks
from gradex.training.fit import fit
from gradex.training.module import FineTuner
from gradex.training.recipe import Recipe, steps_for_epochs


def test_epochs_become_steps():
    assert steps_for_epochs(2.0, rows=10, rows_per_step=4) == 5
    assert steps_for_epochs(0.01, rows=10, rows_per_step=4) == 1


def recipe(folder, **more) -> Recipe:
    base = BaseSpec(str(folder))
    settings = {"max_steps": 12, "learning_rate": 1e-2, "batch_size": 4} | more
    return Recipe(base=base, adapter=AdapterSpec(rank=4, alpha=8.0), **settings)


@pytest.fixture
def train(model_folder, tmp_path):
    def run(name: str, *, keep_at=(), ragged=False, **more):
        made = recipe(model_folder("llama"), **more)
        base = load_base(made.base)
        encoder = Encoder(base.tokenizer, family="causal", max_length=64)
        rows = [
            to_row({"prompt": f"{i}=", "completion": "ab" * (1 + i * ragged)}, "prompt_completion")
            for i in range(10)
        ]
        examples, _ = encode_all(encoder, rows)
        folder = tmp_path / name
        return fit(
            made, base, examples=examples, encoder=encoder, folder=folder, name="t", keep_at=keep_at
        )

    return run


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def test_the_loss_falls_and_the_base_stays(train, model_folder):
    model, losses = train("a", max_steps=60)
    assert len(losses) == 60 and losses[-1] < 0.9 * losses[0]
    frozen = load_base(BaseSpec(str(model_folder("llama")))).model.state_dict()
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(weight, frozen["model.layers.0.self_attn.q_proj.weight"])


def test_one_seed_gives_one_adapter(train):
    first, second, other = trained(train("a")[0]), trained(train("b")[0]), train("c", seed=1)[0]
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], p) for n, p in trained(other).items())


def test_accumulated_batches_equal_one_large_batch(train):
    large, losses = train("a", batch_size=4)
    small, accumulated = train("b", batch_size=2, accumulate=2)
    for name, parameter in trained(large).items():
        torch.testing.assert_close(trained(small)[name], parameter, rtol=1e-3, atol=1e-5)
    assert len(losses) == len(accumulated) == 12
    torch.testing.assert_close(
        torch.tensor(losses), torch.tensor(accumulated), rtol=1e-3, atol=1e-4
    )


BY_TOKENS = {"ragged": True, "batch_size": None, "tokens_per_batch": 60}


def test_accumulated_batches_of_tokens_equal_one_of_all_their_rows(train, monkeypatch):
    """However many rows each of them has: every row counts alike."""
    sizes, draw = [], FineTuner.on_before_batch_transfer

    def watched(self, number, place):
        sizes.append(len(self._draw(number)))
        return draw(self, number, place)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "on_before_batch_transfer", watched)
        small, told = train("a", **BY_TOKENS, accumulate=3, max_steps=1)
    assert len(set(sizes)) > 1
    large, losses = train("b", ragged=True, batch_size=sum(sizes), max_steps=1)
    assert told == pytest.approx(losses, rel=1e-5)
    for name, parameter in trained(large).items():
        torch.testing.assert_close(trained(small)[name], parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dies_at", [3, 7])
def test_an_interrupted_training_draws_the_same_batches_of_tokens(train, monkeypatch, dies_at):
    whole, told = train("whole", **BY_TOKENS, accumulate=2)
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == dies_at:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FineTuner, "training_step", dying)
        train("cut", **BY_TOKENS, accumulate=2)
    cut, losses = train("cut", **BY_TOKENS, accumulate=2)
    assert losses == told
    assert all(torch.equal(p, trained(whole)[n]) for n, p in trained(cut).items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_kept_adapters_are_those_of_their_steps(
    train, tmp_path, monkeypatch, model_folder, accumulate
):
    """Against what the next step begins with; and keeping them changes no other step."""
    seen, step = {}, FineTuner.training_step

    def watched(self, batch, index):
        seen[self.global_step] = trained(self.model)
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", watched)
    model, _ = train("a", keep_at=[1, 4], accumulate=accumulate)
    plain, _ = train("b", accumulate=accumulate)
    assert list(points_in(tmp_path / "a")) == [1, 4] and not points_in(tmp_path / "b")
    for step, folder in points_in(tmp_path / "a").items():
        names = {file.name for file in folder.iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}
        kept = trained(adapters.load(load_base(BaseSpec(str(model_folder("llama")))), folder))
        assert all(torch.equal(kept[name], seen[step][name]) for name in kept)
    assert all(torch.equal(p, trained(plain)[n]) for n, p in trained(model).items())


@pytest.mark.parametrize("dies_at", ["step 2", "export", "step 7", "step 10"])
def test_an_interrupted_training_keeps_the_same_adapters(train, tmp_path, monkeypatch, dies_at):
    """Before, within, between and after the points at which they are kept."""
    train("whole", keep_at=[4, 8])
    step = FineTuner.training_step

    def dying(self, batch, index):
        if dies_at == f"step {self.global_step}":
            raise KeyboardInterrupt
        return step(self, batch, index)

    def dying_export(model, folder, **more):
        export(model, folder, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        if dies_at == "export":
            patch.setattr(callbacks, "export", dying_export)
        with pytest.raises(KeyboardInterrupt):
            train("cut", keep_at=[4, 8])
    before = list(points_in(tmp_path / "cut"))
    assert before == {"step 2": [], "export": [], "step 7": [4], "step 10": [4, 8]}[dies_at]
    train("cut", keep_at=[4, 8])
    assert files_of(tmp_path / "cut/points") == files_of(tmp_path / "whole/points")


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_loss_that_explodes_ends_with_advice(train):
    with pytest.raises(GradexError, match="lower --learning_rate"):
        train("a", learning_rate=1e30, max_steps=30)


def test_no_rows_are_an_error(model_folder, tmp_path):
    made = recipe(model_folder("llama"))
    base = load_base(made.base)
    encoder = Encoder(base.tokenizer, family="causal")
    with pytest.raises(GradexError, match="no row to train on"):
        fit(made, base, examples=[], encoder=encoder, folder=tmp_path, name="t")
