"""Bone: block affine by its formula, its ranks, and the checkpoints of old pefts."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from trained_adapters import logits, make_trained, plain, spec_of

from gradex.adapters.attach import attach
from gradex.adapters.folder import load
from gradex.convert import Config, convert
from gradex.errors import GradexError
from gradex.merge import Config as MergeConfig
from gradex.merge import merge

NEW_KEYS = ("peft_type", "init_weights", "miss_dropout", "mini_r", "peft_version")


def block_affine(weight: Tensor, block: Tensor) -> Tensor:
    """The update, block by block: W_ok M_o + M_o."""
    rank, update = block.shape[-1], torch.zeros_like(weight)
    for o, m in enumerate(block):
        for k in range(weight.shape[1] // rank):
            rows = slice(o * rank, (o + 1) * rank)
            columns = slice(k * rank, (k + 1) * rank)
            update[rows, columns] = weight[rows, columns] @ m + m
    return update


def shared(weight: Tensor, block: Tensor) -> Tensor:
    """dW[:, i] = M[i mod r, :]."""
    return torch.stack([block[i % len(block)] for i in range(weight.shape[1])], dim=1)


@pytest.fixture
def old(model_folder, toy_batch):
    """old(kind, **settings): a trained folder as peft 0.14 to 0.18 wrote it, and its model."""

    def make(kind: str, **settings):
        place = model_folder("llama")
        model = make_trained(Path("old"), place, kind, toy_batch("causal")[1])
        file = Path("old/adapter_model.safetensors")
        renamed = {k.replace(".miss_", ".bone_"): t for k, t in load_file(file).items()}
        save_file(renamed, file)
        config = Path("old/adapter_config.json")
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k not in NEW_KEYS}
        config.write_text(json.dumps(kept | {"peft_type": "BONE"} | settings))
        return model

    return make


# At first Bone was block affine, and its settings said nothing of it.
OLD = {"bone": [{"init_weights": "bat"}, {"init_weights": True}], "miss": [{"init_weights": True}]}


@pytest.mark.parametrize(("kind", "said"), [(kind, said) for kind in OLD for said in OLD[kind]])
def test_an_old_checkpoint_is_a_miss_adapter(model_folder, old, kind, said):
    trained, place = old(kind, **said), model_folder("llama")
    folder = convert(Config(adapter="old", to="miss"))
    before, after = (
        load_file("old/adapter_model.safetensors"),
        load_file(folder / "adapter_model.safetensors"),
    )
    for key, tensor in before.items():
        assert torch.equal(after[key.replace(".bone_", ".miss_")], tensor)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["init_weights"] == ("bat" if kind == "bone" else True)
    torch.testing.assert_close(logits(load(plain(place), folder)), logits(trained))


@pytest.mark.parametrize(("kind", "formula"), [("bone", block_affine), ("miss", shared)])
def test_an_old_checkpoint_merges_as_its_formula_says(model_folder, old, kind, formula):
    old(kind, init_weights="bat" if kind == "bone" else True)
    place, blocks = model_folder("llama"), load_file("old/adapter_model.safetensors")
    folder = convert(Config(adapter="old", to="miss"))
    merge(MergeConfig(adapter=str(folder), output_dir="merged"))
    before, after = (dict(plain(p).model.named_parameters()) for p in (place, Path("merged")))
    for key, block in blocks.items():
        name = key.removeprefix("base_model.model.").replace(".bone_block", ".weight")
        wanted = before[name] + formula(before[name], block)
        torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-5)


def test_an_old_checkpoint_becomes_a_lora_at_once(model_folder, old):
    trained = old("bone", init_weights="bat")
    folder = convert(Config(adapter="old"))
    alone = peft.PeftModel.from_pretrained(plain(model_folder("llama")).model, folder)
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-4)


def test_elsewhere_an_old_checkpoint_is_sent_to_convert(model_folder, old):
    old("bone")
    with pytest.raises(GradexError, match=r"old: a Bone adapter .* `gradex convert --adapter old"):
        load(plain(model_folder("llama")), Path("old"))


@pytest.mark.parametrize(("kind", "said"), [("miss", {"init_weights": "bat"}), ("bone", {"r": 8})])
def test_blocks_that_do_not_fit_their_settings_are_refused(old, kind, said):
    old(kind, **said)
    with pytest.raises(GradexError, match="old: its tensors are no blocks of a Bone adapter"):
        convert(Config(adapter="old", to="miss", output_dir="out"))
    assert not Path("out").exists() and not Path("out.part").exists()


def test_a_pickled_checkpoint_is_refused(old):
    old("bone")
    Path("old/adapter_model.safetensors").rename("old/adapter_model.bin")
    with pytest.raises(GradexError, match="old: it has no adapter_model"):
        convert(Config(adapter="old", to="miss"))


def test_what_is_no_old_checkpoint_is_refused(model_folder, toy_batch):
    make_trained(Path("a"), model_folder("llama"), "miss", toy_batch("causal")[1])
    with pytest.raises(GradexError, match="a: --to miss is for Bone adapters of old pefts"):
        convert(Config(adapter="a", to="miss"))


# Ranks. The tiny Llama's layers have 16, 32 and 48 inputs or outputs.


@pytest.mark.parametrize(
    ("kind", "rank", "mini_r", "says"),
    [
        ("bone", 3, None, r"--lora_r 3: .* does not divide the 32 of .*; .*: 1, 2, 4, 8, 16$"),
        ("bone", 32, None, r"does not divide the 16 of model.layers.0.self_attn.k_proj"),
        ("miss", 33, None, r"--lora_r 33: .* the narrowest has 32; ranks up to that would do"),
        ("miss_mini", 4, 3, r"mini_r=3: .* these would do: 1, 2, 4, 8, 16$"),
        ("miss_mini", 64, 4, "the narrowest has 32"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(model_folder, kind, rank, mini_r, says):
    spec = spec_of(kind, rank=rank)
    if mini_r:
        spec = replace(spec, options={"mini_r": mini_r})
    with pytest.raises(GradexError, match=says):
        attach(plain(model_folder("llama")), spec, seed=0)


@pytest.mark.parametrize(("kind", "rank"), [("bone", 16), ("miss", 5), ("miss", 32)])
def test_ranks_that_would_do_do(model_folder, kind, rank):
    attach(plain(model_folder("llama")), spec_of(kind, rank=rank), seed=0)


def test_only_the_named_layers_count(model_folder):
    """A rank that fits the layers with 48, and does not fit the others."""
    spec = replace(spec_of("miss", rank=48), targets=("down_proj",))
    attach(plain(model_folder("llama")), spec, seed=0)
    with pytest.raises(GradexError, match="the narrowest has 32; ranks up to that would do"):
        attach(plain(model_folder("llama")), replace(spec, targets=("q_proj",)), seed=0)
