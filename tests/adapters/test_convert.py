"""A converted adapter is a plain LoRA of the original base that says the same."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from adapting import shaken
from safetensors.torch import load_file, save_file
from trained_adapters import (
    FAMILIES,
    PAIRS,
    logits,
    make_peft,
    make_trained,
    plain,
    prune,
    spec_of,
)

from gradex.adapters import as_lora
from gradex.adapters import folder as folders
from gradex.adapters.as_lora import adapted_layers, product_of
from gradex.adapters.attach import attach
from gradex.adapters.initial import save_initial
from gradex.adapters.kinds import KINDS
from gradex.adapters.residual import lora_layers
from gradex.convert import Config, convert
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base

REFUSED = {"dora": "DoRA", "ia3": "IA", "full": "no adapter to convert"}
LINEAR = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def converted(place: Path, adapter: str = "a", **more) -> Path:
    return convert(Config(adapter=adapter, base=str(place), **more))


def by_peft_alone(place: Path, folder: Path) -> torch.nn.Module:
    """A plain LoRA, on the base as it was."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["init_lora_weights"] is True
    assert not (folder / "gradex.json").exists()
    return peft.PeftModel.from_pretrained(plain(place).model, folder)


@pytest.mark.parametrize(("kind", "model"), [p for p in PAIRS if p[0] not in REFUSED])
def test_says_the_same_on_the_original_base(model_folder, toy_batch, kind, model):
    family, place = FAMILIES[model], model_folder(model)
    trained = make_trained(Path("a"), place, kind, toy_batch(family)[1])
    alone = by_peft_alone(place, converted(place))
    torch.testing.assert_close(logits(alone, family), logits(trained, family), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind in KINDS])
def test_what_has_no_lora_is_sent_to_merge(model_folder, toy_batch, kind):
    make_trained(Path("a"), model_folder("llama"), kind, toy_batch("causal")[1])
    with pytest.raises(GradexError, match=f"a: .*{REFUSED[kind]}.*gradex merge"):
        converted(model_folder("llama"))
    assert not list(Path("runs/convert").glob("*"))


def test_a_cut_leaves_the_discarded_singular_values(model_folder, toy_batch):
    """The error of every layer in layers.csv, against the update that merging makes."""
    place = model_folder("llama")
    make_trained(Path("a"), place, "bone", toy_batch("causal")[1])
    whole, cut = (
        dict(updates(by_peft_alone(place, converted(place, **more)))) for more in ({}, {"rank": 5})
    )
    [file] = [run / "layers.csv" for run in Path("runs/convert").iterdir() if is_cut(run)]
    table = {row["layer"]: row for row in csv.DictReader(file.read_text().splitlines())}
    assert set(table) == set(cut) == set(whole)
    for name, update in whole.items():
        singular = torch.linalg.svdvals(update)
        lost = (singular[5:].norm() / singular.norm()).item()
        assert ((update - cut[name]).norm() / update.norm()).item() == pytest.approx(lost, abs=1e-4)
        assert float(table[name]["relative_error"]) == pytest.approx(lost, abs=1e-4)


def updates(model):
    for name, layer in adapted_layers(model):
        yield name, product_of(layer, "LORA").update().detach()


def is_cut(run: Path) -> bool:
    return "rank: 5" in (run / "config.yaml").read_text()


def test_a_residual_adapter_is_of_twice_the_rank_or_cut_from_it(model_folder, toy_batch):
    place = model_folder("llama")
    make_trained(Path("a"), place, "milora", toy_batch("causal")[1])
    for more, rank in ({}, 8), ({"rank": 8}, 8), ({"rank": 3}, 3):
        folder = converted(place, **more)
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
    assert (
        load_file(converted(place) / folders.WEIGHTS).keys()
        == load_file(Path("a", folders.WEIGHTS)).keys()
    )


def test_energy_gives_every_layer_its_own_rank(model_folder, toy_batch):
    place = model_folder("llama")
    make_trained(Path("a"), place, "pissa", toy_batch("causal")[1])
    alone = by_peft_alone(place, folder := converted(place, energy=0.8))
    assert json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    before = dict(updates(peft.PeftModel.from_pretrained(plain(place).model, "a")))
    for name, update in updates(alone):
        assert update.norm() ** 2 >= 0.8 * before[name].norm() ** 2 - 1e-5


@pytest.mark.filterwarnings("ignore:.*invalid shape", "ignore:.*rank_pattern keys")  # its own
def test_adalora_is_its_diagonal_times_a(model_folder):
    """Ranks by layer, alpha / (init_r + 1e-5) as their scale, and no layer of rank 0."""
    place = model_folder("llama")
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, lora_alpha=6, **LINEAR)
    trained = make_peft(Path("a"), place, config, then=prune)
    alone = by_peft_alone(place, folder := converted(place))
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-5)
    old, new = load_file("a/adapter_model.safetensors"), load_file(folder / folders.WEIGHTS)
    assert not [key for key in new if "layers.0.self_attn" in key]
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_"
    assert torch.equal(new[key + "A.weight"], old[key + "E"] * old[key + "A"])
    assert torch.equal(new[key + "B.weight"], old[key + "B"])
    [(_, layer), *_] = lora_layers(alone)
    assert layer.scaling["default"] == pytest.approx(6 / (4 + 1e-5), rel=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, **LINEAR),
        peft.LoKrConfig(r=2, **LINEAR),
        peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, rank_pattern={"q_proj": 2}, **LINEAR),
    ],
    ids=["loha", "lokr", "rslora"],
)
def test_what_merges_converts(model_folder, config):
    """Kinds of peft's that gradex knows nothing of, by the difference that merging makes."""
    trained = make_peft(Path("a"), model_folder("llama"), config)
    alone = by_peft_alone(model_folder("llama"), converted(model_folder("llama")))
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "milora", "vera"])
def test_a_classifier_keeps_its_head(model_folder, toy_batch, kind):
    names, batch = [f"class {i}" for i in range(5)], toy_batch("classifier")[1]
    trained = make_trained(Path("a"), place := model_folder("bert"), kind, batch, labels=names)
    converted(place, output_dir="out")
    base = load_base(BaseSpec(str(place)), labels=names)
    alone = peft.PeftModel.from_pretrained(base.model, "out")
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-4)


# What peft trained on a residual.


@pytest.fixture
def pissa(model_folder):
    """An adapter that peft began with PiSSA: begun/, trained/, and the residual model."""
    place = model_folder("llama")
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", **LINEAR)
    torch.manual_seed(0)
    model = peft.get_peft_model(plain(place).model, config)
    model.save_pretrained("begun", save_embedding_layers=False)
    shaken(model)
    model.save_pretrained("trained", save_embedding_layers=False)
    wanted = logits(model)
    model.unload().save_pretrained("residual")
    plain(place).tokenizer.save_pretrained("residual")
    return place, wanted


def test_the_beginning_carries_a_foreign_adapter_home(pissa):
    place, wanted = pissa
    folder = converted(place, "trained", initial="begun")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    torch.testing.assert_close(logits(by_peft_alone(place, folder)), wanted, rtol=0, atol=1e-4)


def test_without_its_beginning_it_is_refused(pissa):
    with pytest.raises(GradexError, match=r"trained: .* pissa, .* --initial DIR"):
        converted(pissa[0], "trained")


@pytest.fixture
def begun_here(model_folder, toy_batch):
    """What --save_init leaves, and what peft alone made of it: begun/ and trained/."""
    place = model_folder("llama")
    base = plain(place)
    adapted = attach(base, spec_of("milora"), seed=0, batches=[toy_batch("causal")[1]])
    save_initial(adapted, Path("begun"), tokenizer=base.tokenizer, base_path=str(place))
    residual = plain(Path("begun/model")).model
    model = peft.PeftModel.from_pretrained(residual, "begun/adapter", is_trainable=True)
    shaken(model).save_pretrained("trained", save_embedding_layers=False)
    return place, logits(model)


@pytest.mark.parametrize("initial", ["begun", "begun/adapter"])
def test_what_peft_made_of_a_saved_beginning_comes_home(begun_here, initial):
    place, wanted = begun_here
    folder = converted(place, "trained", initial=initial)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(place)
    torch.testing.assert_close(logits(by_peft_alone(place, folder)), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("initial", [None, "begun"])
def test_a_residual_model_is_no_base_to_come_home_to(begun_here, initial):
    """Which the adapter's own settings name."""
    with pytest.raises(GradexError, match=r"--base .*model: a residual model.* --initial"):
        convert(Config(adapter="trained", initial=initial))


def test_a_beginning_of_something_else_is_refused(pissa, toy_batch):
    place, _ = pissa
    with pytest.raises(GradexError, match=r"--base: .* the residual model already"):
        converted(Path("residual"), "trained", initial="begun")
    make_trained(Path("a"), place, "lora", toy_batch("causal")[1])
    make_trained(Path("b"), place, "rslora", toy_batch("causal")[1])
    make_trained(Path("home"), place, "pissa", toy_batch("causal")[1])
    with pytest.raises(GradexError, match="--initial b: its use_rslora is True, that of a is Fal"):
        converted(place, "a", initial="b")
    with pytest.raises(GradexError, match="home: loads on the base as it was already"):
        converted(place, "home", initial="a")
    with pytest.raises(GradexError, match="--initial trained: the same weights as trained"):
        converted(place, "trained", initial="trained")
    make_trained(Path("d"), place, "dora", toy_batch("causal")[1])
    with pytest.raises(GradexError, match="--initial is for plain LoRA adapters"):
        converted(place, "a", initial="d")


# Refusals.


def test_flags_that_mean_nothing_are_refused():
    with pytest.raises(GradexError, match="--rank: found beside --energy"):
        Config(rank=2, energy=0.5)
    with pytest.raises(GradexError, match="--rank: found with --to miss"):
        Config(rank=2, to="miss")


def test_an_adapter_that_does_nothing_is_refused(model_folder, toy_batch):
    base = plain(model_folder("llama"))
    folders.export(attach(base, spec_of("bone"), seed=0), Path("a"), base_path="b", card=None)
    with pytest.raises(GradexError, match="a: the adapter changes nothing"):
        converted(model_folder("llama"))


def test_prompts_are_refused(model_folder):
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    make_peft(Path("a"), model_folder("llama"), config)
    with pytest.raises(GradexError, match=r"a: it cannot be .* its type is PROMPT_TUNING"):
        converted(model_folder("llama"))


def test_a_conversion_that_differs_is_not_left_behind(model_folder, toy_batch, monkeypatch):
    """Here a scale is lost on the way."""
    make_trained(Path("a"), model_folder("llama"), "vera", toy_batch("causal")[1])
    find = as_lora.PRODUCTS["VERA"]
    monkeypatch.setitem(as_lora.PRODUCTS, "VERA", lambda layer: replace(find(layer), scale=0.9))
    with pytest.raises(GradexError, match="a: as a LoRA: the logits differ by"):
        converted(model_folder("llama"), output_dir="out")
    assert not Path("out").exists() and not Path("out.part").exists()


@pytest.mark.parametrize("more", [{}, {"rank": 2}])
def test_a_broken_adapter_is_refused(model_folder, toy_batch, more):
    make_trained(Path("a"), model_folder("llama"), "lora", toy_batch("causal")[1])
    tensors = load_file(file := Path("a", folders.WEIGHTS))
    save_file({key: tensor * torch.nan for key, tensor in tensors.items()}, file)
    with pytest.raises(GradexError, match="a: its logits are not finite"):
        converted(model_folder("llama"), **more)


@pytest.mark.parametrize("kind", ["milora", "bone", "vera"])
def test_a_base_in_bfloat16(model_folder, toy_batch, kind):
    """The update is not rounded to the base's dtype: it is that of the base's own weights."""
    place = Path("half")
    base = load_base(BaseSpec(str(model_folder("llama")), dtype="bfloat16"))
    base.model.save_pretrained(place)
    base.tokenizer.save_pretrained(place)
    trained = make_trained(Path("a"), place, kind, toy_batch("causal")[1])
    alone = by_peft_alone(place, converted(place))
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-4)
