"""Reduced folders load with peft alone, and add what their layers were found to keep."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from gradex.adapters.attach import attach
from gradex.adapters.folder import SETTINGS, WEIGHTS, export, load, load_all
from gradex.adapters.kinds import parse_options
from gradex.adapters.norm import Rule, reduce_pair
from gradex.adapters.reduced import reduce_adapter, require_lora
from gradex.adapters.residual import base_weight, lora_layers
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base

KEEP_ALL = Rule(range_start=10)
KINDS = pytest.mark.parametrize("kind", ["lora", "rslora", "milora"])
MODELS = pytest.mark.parametrize("model", ["llama", "gpt2", "t5"])


@pytest.fixture
def base(model_folder):
    return lambda model: load_base(BaseSpec(str(model_folder(model))))


def trained(base, kind: str, folder: Path) -> Path:
    """An adapter of a kind whose numbers were all moved."""
    spec = AdapterSpec(kind=kind, rank=8, alpha=24.0, options=parse_options(kind, []))
    model = attach(base, spec, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    export(model, folder, base_path="base", card=None)
    return folder


def reduced(base, folder: Path, out: Path, rule: Rule, scale: str = "preserve"):
    model = load_all(base, {"default": folder})
    return reduce_adapter(model, folder, out, rule=rule, scale=scale, seed=0)


def by_peft_alone(base, folder: Path):
    return peft.PeftModel.from_pretrained(base.model, folder).eval()


def updates(model) -> dict[str, torch.Tensor]:
    """Layer -> what is added to its weight, (out, in)."""
    return {
        name: (layer.get_delta_weight("default").T if layer.fan_in_fan_out else
               layer.get_delta_weight("default")).detach()
        for name, layer in lora_layers(model)
    }  # fmt: skip


@KINDS
@MODELS
def test_every_layer_adds_what_its_pair_was_reduced_to(base, tmp_path, kind, model):
    folder = trained(base(model), kind, tmp_path / "a")
    lines = reduced(base(model), folder, tmp_path / "out", Rule())
    before, after = by_peft_alone(base(model), folder), by_peft_alone(base(model), tmp_path / "out")
    found = updates(after)
    assert len(lines) == len(found) and len({line.kept for line in lines}) > 1
    for line, (name, layer) in zip(lines, lora_layers(before), strict=True):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        short_a, short_b, rank = reduce_pair(a.detach(), b.detach(), base_weight(layer))
        assert name == f"base_model.model.{line.layer}"
        assert (line.rank, line.kept) == (len(a), rank)
        scaled = layer.scaling["default"] * short_b @ short_a
        torch.testing.assert_close(found[name], scaled, rtol=1e-4, atol=1e-5)
    count = sum(tensor.numel() for tensor in load_file(tmp_path / "out" / WEIGHTS).values())
    assert count == sum(line.parameters_kept for line in lines)


@KINDS
def test_keeping_all_changes_nothing(base, tmp_path, kind):
    """The very same numbers, and of an adapter with halves those of both."""
    folder = trained(base("llama"), kind, tmp_path / "a")
    lines = reduced(base("llama"), folder, tmp_path / "out", KEEP_ALL)
    assert all(line.kept == line.rank and line.energy == 1 for line in lines)
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        plain, again = (
            by_peft_alone(base("llama"), place)(ids).logits for place in (folder, tmp_path / "out")
        )
    assert torch.equal(plain, again)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_the_scale_of_the_authors_is_one(base, tmp_path, kind):
    folder = trained(base("llama"), kind, tmp_path / "a")
    reduced(base("llama"), folder, tmp_path / "out", Rule(), "authors")
    model = by_peft_alone(base("llama"), tmp_path / "out")
    scales = [layer.scaling["default"] for _, layer in lora_layers(model)]
    assert scales == pytest.approx([1.0] * len(scales))


def test_a_reduced_adapter_is_trained_on_and_reduced_again(base, tmp_path):
    folder = trained(base("llama"), "milora", tmp_path / "a")
    first = reduced(base("llama"), folder, tmp_path / "one", Rule())
    model = load(base("llama"), tmp_path / "one")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        line.parameters_kept for line in first
    )
    again = reduced(base("llama"), tmp_path / "one", tmp_path / "two", KEEP_ALL)
    assert [line.kept for line in again] == [line.kept for line in first]
    torch.testing.assert_close(
        updates(by_peft_alone(base("llama"), tmp_path / "two")),
        updates(by_peft_alone(base("llama"), tmp_path / "one")),
    )


def test_names_that_end_alike_keep_their_own_ranks(tmp_path):
    """peft matches the ends of names: `q` must not give its rank to `deep.q`."""
    from gradex.models.load import Base

    def tiny():
        torch.manual_seed(0)
        inner = torch.nn.ModuleDict({"q": torch.nn.Linear(20, 30)})
        return Base(
            torch.nn.ModuleDict({"q": torch.nn.Linear(20, 30), "deep": inner}), None, "causal"
        )

    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["q"], init_lora_weights=False)
    torch.manual_seed(0)
    peft.get_peft_model(tiny().model, config).save_pretrained(tmp_path / "a")
    lines = reduced(tiny(), tmp_path / "a", tmp_path / "out", Rule())
    assert len({line.kept for line in lines}) == 2
    after = by_peft_alone(tiny(), tmp_path / "out")
    assert [layer.r["default"] for _, layer in lora_layers(after)] == [line.kept for line in lines]


def test_a_classifiers_head_stays_as_it_is(base, tmp_path):
    folder = trained(base("bert"), "lora", tmp_path / "a")
    reduced(base("bert"), folder, tmp_path / "out", Rule())
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    head = [key for key in before if ".lora_" not in key]
    assert any("classifier" in key for key in head)
    assert all(torch.equal(before[key], after[key]) for key in head)
    by_peft_alone(base("bert"), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("dora", "DoRA.*`gradex merge`"),
        ("miss", "kind MISS.*`gradex convert --to lora`"),
        ("vera", "kind VERA.*--adapter lora"),
        ("full", "all weights of the model"),
    ],
)
def test_what_is_no_product_is_refused(base, tmp_path, kind, says):
    folder = trained(base("llama"), kind, tmp_path / "a")
    with pytest.raises(GradexError, match=says):
        require_lora(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_lora_weights": "pissa"}, "began from a part of its base"),
        ({"target_parameters": ["x"]}, "with target_parameters"),
        ({"peft_type": 3}, "peft_type"),
    ],
)
def test_settings_that_mean_more_than_a_product_are_refused(base, tmp_path, changes, says):
    folder = trained(base("llama"), "lora", tmp_path / "a")
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changes))
    with pytest.raises(GradexError, match=says):
        require_lora(folder)


def test_an_adapter_that_is_spoiled_is_named_by_its_layer(base, tmp_path):
    folder = trained(base("llama"), "lora", tmp_path / "a")
    spoiled = shutil.copytree(folder, tmp_path / "b")
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if "layers.1.mlp.up_proj" in key)
    tensors[key][0, 0] = float("nan")
    save_file(tensors, spoiled / WEIGHTS, {"format": "pt"})
    with pytest.raises(GradexError, match=r"layers\.1\.mlp\.up_proj: .*not finite"):
        reduced(base("llama"), spoiled, tmp_path / "out", Rule())
