"""Loading: three families told by their config; pickles and foreign code are not let in."""

import json

import pytest
import torch

from gradex.errors import GradexError
from gradex.models.load import BaseSpec, fingerprint, label_ids, load_base


@pytest.mark.parametrize(
    ("kind", "family"),
    [("llama", "causal"), ("gpt2", "causal"), ("t5", "seq2seq"), ("bert", "classifier")],
)
def test_families_are_told_apart(model_folder, kind, family):
    base = load_base(BaseSpec(str(model_folder(kind))))
    assert base.family == family and not base.model.training


def test_the_demo_is_shipped():
    base = load_base(BaseSpec("demo"))
    assert 100_000 < sum(p.numel() for p in base.model.parameters()) < 300_000


def copy_of(folder, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_the_fingerprint_follows_the_weights(model_folder, tmp_path):
    copy = copy_of(model_folder("llama"), tmp_path)
    spec = BaseSpec(str(copy))
    first = load_base(spec)
    mark = fingerprint(spec, first)
    assert mark == fingerprint(BaseSpec(str(model_folder("llama"))), first)
    next(first.model.parameters()).data += 1
    first.model.save_pretrained(copy)
    assert fingerprint(spec, first)["model"] != mark["model"]


def test_a_folder_without_weights_is_refused(model_folder, tmp_path):
    copy = copy_of(model_folder("llama"), tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(GradexError, match="without weights"):
        load_base(BaseSpec(str(copy)))


def test_pickled_weights_are_refused_unless_allowed(model_folder, tmp_path):
    copy = copy_of(model_folder("llama"), tmp_path)
    model = load_base(BaseSpec(str(copy))).model
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(GradexError, match=r"pytorch_model\.bin.*--allow_pickle"):
        load_base(BaseSpec(str(copy)))
    load_base(BaseSpec(str(copy), allow_pickle=True))


def test_code_of_a_model_is_never_run_unasked(model_folder, tmp_path):
    copy = copy_of(model_folder("llama"), tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("open('ran', 'w').close()\n")
    with pytest.raises(GradexError, match="--trust_remote_code"):
        load_base(BaseSpec(str(copy)))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_another_model_is_refused(model_folder, tmp_path):
    copy = copy_of(model_folder("llama"), tmp_path)
    demo = load_base(BaseSpec("demo"))
    demo.tokenizer.save_pretrained(copy)
    with pytest.raises(GradexError, match="do not belong together"):
        load_base(BaseSpec(str(copy)))


def test_qlora_needs_a_gpu(model_folder):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(GradexError, match="--qlora: needs a CUDA GPU"):
        load_base(BaseSpec(str(model_folder("llama")), qlora=True))


def test_a_new_head_is_drawn_from_a_fixed_seed_and_named_classes_are_kept(model_folder):
    spec = BaseSpec(str(model_folder("bert")))
    first, second = (load_base(spec, labels=list("abcd")).model for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert label_ids(first, list("abcd")) == {"a": 0, "b": 1, "c": 2, "d": 3}
    first.config.label2id = {"b": 0, "a": 1}
    assert label_ids(first, ["a", "b"]) == {"b": 0, "a": 1}
