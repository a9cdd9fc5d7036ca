"""A merged model says what adapter and base say, or is not left behind."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from trained_adapters import FAMILIES, PAIRS, logits, make_peft, make_trained, prune

from gradex.adapters.folder import load
from gradex.errors import GradexError
from gradex.merge import Config, merge
from gradex.models.load import BaseSpec, load_base

CLASSES = {
    "causal": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "classifier": transformers.AutoModelForSequenceClassification,
}
LINEAR = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def merged(adapter: str, place: Path, **more) -> Path:
    return merge(Config(adapter=adapter, base=str(place), **more))


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_merges_to_the_same_logits(model_folder, toy_batch, kind, model):
    """Read by transformers alone, from a folder that holds the tokenizer too."""
    family, place = FAMILIES[model], model_folder(model)
    trained = make_trained(Path("a"), place, kind, toy_batch(family)[1])
    folder = merged("a", place)
    alone = CLASSES[family].from_pretrained(folder)
    torch.testing.assert_close(logits(alone, family), logits(trained, family), rtol=0, atol=1e-4)
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == 99
    assert (folder / "generation_config.json").exists()


@pytest.mark.parametrize("kind", ["lora", "milora", "dora", "full"])
def test_a_classifier_keeps_its_head(model_folder, toy_batch, kind):
    """One of another number of classes than the base has."""
    place, names = model_folder("bert"), [f"class {i}" for i in range(5)]
    _, batch = toy_batch("classifier")
    trained = make_trained(Path("a"), place, kind, batch, labels=names)
    alone = CLASSES["classifier"].from_pretrained(merged("a", place))
    assert alone.config.num_labels == 5
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*invalid shape", "ignore:.*rank_pattern keys")  # its own
def test_adalora_with_layers_of_no_rank_merges(model_folder):
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, lora_alpha=6, **LINEAR)
    trained = make_peft(Path("a"), model_folder("llama"), config, then=prune)
    alone = CLASSES["causal"].from_pretrained(merged("a", model_folder("llama")))
    torch.testing.assert_close(logits(alone), logits(trained), rtol=0, atol=1e-4)


def test_bfloat16_stays_bfloat16(model_folder, toy_batch):
    """The base's dtype is that of the merged files, and rounding is allowed for."""
    place = Path("half")
    base = load_base(BaseSpec(str(model_folder("llama")), dtype="bfloat16"))
    base.model.save_pretrained(place)
    base.tokenizer.save_pretrained(place)
    make_trained(Path("a"), place, "lora", toy_batch("causal")[1])
    alone = CLASSES["causal"].from_pretrained(merged("a", place))
    assert alone.dtype == torch.bfloat16
    wanted = logits(load(load_base(BaseSpec(str(place), dtype="bfloat16")), Path("a"))).float()
    assert (logits(alone).float() - wanted).abs().max() < 0.03 * wanted.abs().max()


PROMPTS = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    "LILY": lambda: peft.LilyConfig(r=2, **LINEAR),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_what_is_no_change_of_weights_is_refused(model_folder, kind):
    make_peft(Path("a"), model_folder("llama"), PROMPTS[kind]())
    with pytest.raises(GradexError, match=rf"a: it cannot be merged .* its type is {kind}"):
        merged("a", model_folder("llama"))
    assert not list(Path("runs/merge").glob("*"))


def test_a_model_that_differs_is_not_left_behind(model_folder, toy_batch, monkeypatch):
    """Here merging forgets the scale of the layers."""
    from peft.tuners.lora.layer import Linear

    make_trained(Path("a"), model_folder("llama"), "lora", toy_batch("causal")[1])
    found = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 0.9 * found(self, name))
    with pytest.raises(GradexError, match=r"a: the merged model: the logits differ by .* expected"):
        merged("a", model_folder("llama"), output_dir="out")
    assert not Path("out").exists() and not Path("out.part").exists()


def test_an_ensemble_is_refused(model_folder):
    for name in ("group-0", "group-1"):
        Path("run/adapters", name).mkdir(parents=True)
    Path("run/ensemble.json").write_text("{}")
    with pytest.raises(GradexError, match=r"run: an ensemble .* group-0, group-1"):
        merged("run", model_folder("llama"))


def test_a_residual_of_another_base_is_refused(model_folder, toy_batch):
    """peft's own folder of PiSSA does not say which of two bases it is to be put on."""
    make_trained(Path("a"), model_folder("llama"), "lora", toy_batch("causal")[1])
    settings = json.loads(Path("a/adapter_config.json").read_text())
    text = json.dumps(settings | {"init_lora_weights": "pissa_niter_4"})
    Path("a/adapter_config.json").write_text(text)
    with pytest.raises(GradexError, match=r"init_lora_weights is pissa_niter_4,.*--initial DIR"):
        merged("a", model_folder("llama"))


def test_what_is_no_adapter_is_refused(model_folder):
    Path("empty").mkdir()
    with pytest.raises(GradexError, match="empty: neither an adapter's folder nor a finished run"):
        merged("empty", model_folder("llama"))
    with pytest.raises(GradexError, match="no finished run of finetune"):
        merge(Config())


@pytest.mark.parametrize("kind", [["LORA"], None, 3])
def test_settings_without_a_type_are_an_error(model_folder, toy_batch, kind):
    place = model_folder("llama")
    make_trained(Path("a"), place, "lora", toy_batch("causal")[1])
    settings = json.loads(Path("a/adapter_config.json").read_text())
    Path("a/adapter_config.json").write_text(json.dumps(settings | {"peft_type": kind}))
    with pytest.raises(GradexError, match=r"a/adapter_config\.json: key 'peft_type'"):
        merged("a", place)


def test_a_base_that_is_recorded_nowhere_is_asked_for(model_folder, toy_batch):
    make_trained(Path("a"), model_folder("llama"), "full", toy_batch("causal")[1])
    with pytest.raises(GradexError, match=r"a: it is not recorded which base .* --base MODEL"):
        merge(Config(adapter="a"))
