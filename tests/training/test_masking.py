"""Masks: what may not change is exactly as it began, whatever the optimizer does to the rest."""

from pathlib import Path

import pytest
import torch
from conftest import skill_rows
from safetensors.torch import save_file
from torch import nn

from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.training import masking
from gradex.training.begin import Start, begin
from gradex.training.fit import fit
from gradex.training.masking import Masking, masked_parameters, read_masks
from gradex.training.module import FineTuner
from gradex.training.recipe import Recipe


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def train(model_folder, tmp_path):
    """train(folder, masks of) -> the parameters before and after, and the masks: a function makes
    each from the name and the tensor."""
    spec = BaseSpec(str(model_folder("llama")))
    encoder = Encoder(load_base(spec).tokenizer, family="causal", max_length=64)
    rows = [to_row(row, "prompt_completion") for row in skill_rows("copy", 12, seed=0)]
    examples, _ = encode_all(encoder, rows)

    def run(name: str, mask, *, kind="lora", **more):
        adapter = AdapterSpec(rank=4, alpha=8.0, kind=kind)
        settings = {"max_steps": 6, "learning_rate": 1e-2, "batch_size": 4, "weight_decay": 0.3}
        recipe = Recipe(base=spec, adapter=adapter, **settings | more)
        begun = begin(
            recipe, load_base(spec), start=Start(), examples=examples, encoder=encoder,
            folder=tmp_path,
        )  # fmt: skip
        before = parameters(begun)
        masks = {n: m for n, p in before.items() if (m := mask(n, p)) is not None}
        model, _ = fit(
            recipe, load_base(spec), examples=examples, encoder=encoder, folder=tmp_path / name,
            name="t", beside=[Masking(masks)] if masks else [],
        )  # fmt: skip
        return before, parameters(model), masks

    return run


def half(name: str, parameter: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.rand(parameter.shape, generator=generator) < 0.5


class Stirring(torch.optim.SGD):
    """Momentum, decay, and every entry of a tensor moved by all the others."""

    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter += 1e-3 * parameter.mean() + 1e-4
        return loss


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Stirring])
@pytest.mark.parametrize(
    "more",
    [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}, {"kind": "milora"}, {"kind": "full"}],
    ids=str,
)
def test_what_is_off_the_mask_stays_exactly_as_it_began(train, monkeypatch, optimizer, more):
    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    before, after, masks = train("a", half, **more)
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask], before[name][~mask]), name
    moved = [(after[n] != before[n])[m].float().mean() for n, m in masks.items()]
    assert sum(moved) / len(moved) > 0.8


def test_a_mask_of_everything_changes_nothing(train):
    _, masked, _ = train("a", lambda name, p: torch.ones_like(p, dtype=torch.bool))
    _, plain, _ = train("b", lambda name, p: None)
    assert all(torch.equal(masked[name], plain[name]) for name in plain)


def test_gradients_off_the_mask_do_not_count_where_gradients_are_clipped(train, monkeypatch):
    """Frozen by masks or for good, the rest goes the same way."""
    monkeypatch.setattr(torch.optim, "AdamW", Stirring)  # which heeds a gradient's length

    def upper(name, p):
        return torch.full_like(p, "layers.1" in name, dtype=torch.bool)

    _, masked, _ = train("a", upper, learning_rate=1.0, max_steps=2)
    attached = masking.masked_parameters

    def freezing(model, masks):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "layers.1" in name)
        return attached(model, {})

    start = FineTuner.__init__

    def frozen(self, model, *args, **more):
        freezing(model, {})
        start(self, model, *args, **more)

    monkeypatch.setattr(FineTuner, "__init__", frozen)
    _, kept, _ = train("b", lambda name, p: None, learning_rate=1.0, max_steps=2)
    for name, parameter in kept.items():
        torch.testing.assert_close(masked[name], parameter, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dies_at", [2, 5])
def test_an_interrupted_training_keeps_to_its_masks(train, monkeypatch, dies_at):
    before, whole, masks = train("whole", half)
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == dies_at:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FineTuner, "training_step", dying)
        train("cut", half)
    _, cut, _ = train("cut", half)
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    assert all(torch.equal(cut[name][~mask], before[name][~mask]) for name, mask in masks.items())


@pytest.fixture
def model(model_folder, tmp_path):
    spec = BaseSpec(str(model_folder("llama")))
    settings = {"max_steps": 1, "learning_rate": 1e-2, "batch_size": 4}
    recipe = Recipe(base=spec, adapter=AdapterSpec(rank=4, alpha=8.0), **settings)
    base = load_base(spec)
    encoder = Encoder(base.tokenizer, family="causal", max_length=64)
    return begin(recipe, base, start=Start(), examples=[], encoder=encoder, folder=tmp_path)


def test_names_are_those_of_parameters_or_of_adapter_files(model):
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    mask = torch.zeros_like(parameter, dtype=torch.bool)
    for spelling in (name, name.replace(".default", "")):
        assert masked_parameters(model, {spelling: mask})[spelling] is parameter


def test_masks_that_do_not_fit(model):
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    mask = torch.ones_like(parameter, dtype=torch.bool)
    with pytest.raises(
        GradexError, match=r"'.*q_prol.*' is not trained here; the nearest name is "
    ):
        masked_parameters(model, {name.replace("q_proj", "q_prol"): mask})
    frozen = next(n for n, p in model.named_parameters() if not p.requires_grad)
    with pytest.raises(GradexError, match="is not trained here"):
        masked_parameters(model, {frozen: mask})
    with pytest.raises(GradexError, match=r"has the shape \(3,\), the parameter \(4, 32\)"):
        masked_parameters(model, {name: mask[0, :3]})
    none = {
        n: torch.zeros_like(p, dtype=torch.bool)
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    with pytest.raises(GradexError, match="nothing may change"):
        masked_parameters(model, none)


def test_files_that_hold_no_masks():
    with pytest.raises(GradexError, match=r"--mask gone\.safetensors: no such file"):
        read_masks(Path("gone.safetensors"))
    with pytest.raises(GradexError, match="--mask: found an empty name"):
        read_masks(Path(""))
    Path("bad.safetensors").write_bytes(b"not one")
    with pytest.raises(GradexError, match=r"--mask bad\.safetensors: not a safetensors file"):
        read_masks(Path("bad.safetensors"))
    save_file({"a": torch.ones(2)}, "floats.safetensors")
    with pytest.raises(GradexError, match="'a' is float32, expected bool"):
        read_masks(Path("floats.safetensors"))
    save_file({}, "empty.safetensors")
    with pytest.raises(GradexError, match="holds no mask"):
        read_masks(Path("empty.safetensors"))
    save_file({"a": torch.ones(2, dtype=torch.bool)}, "good.safetensors")
    assert read_masks(Path("good.safetensors"))["a"].all()
