"""The beginning of a training as a folder: for other trainers, and for no other base."""

import json
import shutil

import peft
import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.folder import load
from gradex.adapters.initial import initial_folder, save_initial
from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq"}
FROM_BASE = [name for name, kind in KINDS.items() if kind.from_base]
RANK, ALPHA = 4, 6.0


@pytest.fixture
def base(model_folder):
    return lambda model="llama": load_base(BaseSpec(str(model_folder(model))))


def begun(base, batch, kind):
    spec = AdapterSpec(rank=RANK, alpha=ALPHA, kind=kind, options=parse_options(kind, []))
    return attach(base, spec, seed=0, batches=[batch])


def losses(model, batch, family="causal"):
    with torch.no_grad():
        return sample_objectives(model, dict(batch), family)[0]["loss"]


def saved(base, batch, folder, kind="milora"):
    adapted = begun(base, batch, kind)
    save_initial(adapted, folder, tokenizer=base.tokenizer, base_path="the/base")
    return adapted


@pytest.mark.parametrize(
    ("kind", "model"), [*((kind, "llama") for kind in FROM_BASE), ("milora", "gpt2"), ("mid", "t5")]
)
def test_residual_model_and_initial_adapter_are_the_base(base, toy_batch, tmp_path, kind, model):
    """For gradex and for peft alone; and without the adapter, the model is another one."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    saved(base(model), batch, tmp_path / "init", kind)
    original = losses(base(model).model, batch, family)
    alone = load_base(BaseSpec(str(tmp_path / "init/model")))
    assert (losses(alone.model, batch, family) - original).abs().max() > 1e-4
    alone = peft.PeftModel.from_pretrained(alone.model, tmp_path / "init/adapter").eval()
    residual = load_base(BaseSpec(str(tmp_path / "init/model")))
    both = load(residual, tmp_path / "init/adapter")
    for found in (alone, both):
        torch.testing.assert_close(losses(found, batch, family), original, rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "init/adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "init/model")
    assert settings["r"] == RANK and not (tmp_path / "init.part").exists()


def test_an_adapter_trained_elsewhere_is_held_to_the_residual_model(base, toy_batch, tmp_path):
    """By the name in its config: peft's folders hold no marks."""
    _, batch = toy_batch("causal")
    init = tmp_path / "init"
    saved(base(), batch, init)
    residual = load_base(BaseSpec(str(init / "model")))
    trained = peft.PeftModel.from_pretrained(residual.model, init / "adapter", is_trainable=True)
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1
    trained.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    assert not (tmp_path / "theirs/gradex.json").exists()
    loaded = load(load_base(BaseSpec(str(init / "model"))), tmp_path / "theirs")
    torch.testing.assert_close(losses(loaded, batch), losses(trained, batch))
    for folder in (tmp_path / "theirs", init / "adapter"):
        with pytest.raises(GradexError, match="another base model"):
            load(base(), folder)
    shutil.rmtree(init / "model")  # the initial adapter has marks of its own
    with pytest.raises(GradexError, match="another base model"):
        load(base(), init / "adapter")


@pytest.mark.parametrize("kind", [k for k in KINDS if not KINDS[k].from_base and k != "full"])
def test_a_kind_that_leaves_the_base_alone_points_to_it(base, toy_batch, tmp_path, kind):
    _, batch = toy_batch("causal")
    adapted = saved(base(), batch, tmp_path / "init", kind)
    assert [file.name for file in (tmp_path / "init").iterdir()] == ["adapter"]
    settings = json.loads((tmp_path / "init/adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "the/base"
    loaded = load(base(), tmp_path / "init/adapter")
    torch.testing.assert_close(losses(loaded, batch), losses(adapted.eval(), batch))


def test_a_folder_that_is_there_is_refused_unless_the_run_goes_on(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(GradexError, match=r"--save_init .*there: exists already"):
        initial_folder(str(tmp_path / "there"), "milora", resumed=False)
    assert initial_folder(str(tmp_path / "there"), "milora", resumed=True)
    assert initial_folder(None, "full", resumed=False) is None
    with pytest.raises(GradexError, match="--adapter full trains the base"):
        initial_folder(str(tmp_path / "new"), "full", resumed=False)
    with pytest.raises(GradexError, match="--save_init: found an empty name"):
        initial_folder("", "milora", resumed=False)


def test_a_folder_that_cannot_be_written_is_an_error(base, toy_batch, tmp_path):
    _, batch = toy_batch("causal")
    (tmp_path / "file").write_text("")
    for name in ("file/init", "x" * 300):
        with pytest.raises(GradexError, match="--save_init"):
            saved(base(), batch, tmp_path / name)
