"""What layers see: the sums of one row at a time, whatever the batch, family and place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from gradex.adapters import covariance_cache
from gradex.adapters.attach import attach
from gradex.adapters.covariance import Context, collect
from gradex.adapters.covariance_cache import FOLDER, contexts, fingerprint
from gradex.adapters.kinds import KINDS, kind_of
from gradex.adapters.residual import lora_layers
from gradex.adapters.spec import AdapterSpec
from gradex.data.tokens import Example, collate
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import label_logits
from gradex.train_arguments import TrainArguments

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}


@pytest.fixture
def attached(model_folder):
    def make(kind: str) -> tuple[nn.Module, dict[str, nn.Module]]:
        model = attach(load_base(BaseSpec(str(model_folder(kind)))), AdapterSpec(rank=2), seed=0)
        return model, dict(lora_layers(model))

    return make


def one_by_one(examples, family) -> list[dict]:
    return [collate([example], family=family, pad_id=0) for example in examples]


def slow_covariances(model, layers, examples, family) -> dict[str, tuple]:
    """From the definition: a row a forward pass, without padding, every input kept."""
    inputs = {name: [] for name in layers}
    handles = [
        layer.register_forward_hook(lambda m, args, out, name=name: inputs[name].append(args[0]))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in one_by_one(examples, family):
            label_logits(model, batch, family)
    for handle in handles:
        handle.remove()
    found = {}
    for name, rows in inputs.items():
        flat = [row.reshape(-1, row.shape[-1]) for row in rows]
        assert len(flat) == len(examples)
        scaled = [x / x.max().abs() for x in flat]
        covariance = sum(x.T @ x for x in scaled) / len(flat)
        found[name] = covariance, sum(x.abs().mean(0) for x in flat) / len(flat)
    return found


@pytest.mark.parametrize(
    ("kind", "side"), [*((kind, "right") for kind in FAMILIES), ("llama", "left")]
)
def test_a_padded_batch_is_its_rows_one_at_a_time(attached, toy_batch, kind, side):
    family = FAMILIES[kind]
    examples, batch = toy_batch(family, padding_side=side)
    model, layers = attached(kind)
    expected = slow_covariances(model, layers, examples, family)
    for batches in ([batch], one_by_one(examples, family)):
        found = collect(model, layers, batches, family)
        for name, (covariance, magnitude) in expected.items():
            torch.testing.assert_close(found[name].covariance, covariance, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[name].magnitude, magnitude, rtol=1e-4, atol=1e-5)
            assert found[name].covariance.dtype == torch.float32


def test_the_covariances_are_those_of_the_library(attached, model_folder, toy_batch):
    """peft reads a row a forward pass, without padding."""
    corda = pytest.importorskip("peft.tuners.lora.corda", reason="needs attrs")
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig

    examples, batch = toy_batch("causal")
    model, layers = attached("llama")
    found = collect(model, layers, [batch], "causal")
    names = sorted({name.split(".")[-1] for name in layers})
    theirs = load_base(BaseSpec(str(model_folder("llama")))).model
    settings = CordaConfig(corda_method="ipm", prune_temporary_fields=False)
    config = LoraConfig(r=2, target_modules=names, init_lora_weights="corda", corda_config=settings)

    def run() -> None:
        for one in one_by_one(examples, "causal"):
            theirs(one["input_ids"])

    corda.preprocess_corda(theirs, config, run_model=run)
    for name, context in found.items():
        layer = theirs.get_submodule(name.removeprefix("base_model.model."))
        torch.testing.assert_close(
            context.covariance, layer.covariance_matrix, rtol=1e-4, atol=1e-5
        )


def test_an_encoder_and_a_decoder_of_one_width_are_told_apart(attached):
    """Texts and labels padded to the same number of tokens, but not the same rows."""
    rng = np.random.default_rng(0)
    examples = [
        Example(f"r{i}", rng.integers(3, 99, text), rng.integers(3, 99, labels))
        for i, (text, labels) in enumerate([(9, 2), (3, 9), (5, 5)])
    ]
    batch = collate(examples, family="seq2seq", pad_id=0)
    assert batch["input_ids"].shape == batch["labels"].shape
    model, layers = attached("t5")
    found = collect(model, layers, [batch], "seq2seq")
    for name, (covariance, _) in slow_covariances(model, layers, examples, "seq2seq").items():
        torch.testing.assert_close(found[name].covariance, covariance, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(attached, toy_batch):
    model, layers = attached("llama")
    _, batch = toy_batch("causal")
    model.train()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    collect(model, layers, [batch], "causal")
    assert not any(module._forward_pre_hooks for module in model.modules())
    bad = batch | {"input_ids": batch["input_ids"] + 1000}
    with pytest.raises(IndexError):
        collect(model, layers, [bad], "causal")
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


class _Experts(nn.Module):
    """One layer that gets no row, one that gets some tokens of which nobody knows whose they are,
    one that gets numbers that are none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config
        self.idle, self.chosen, self.broken = (nn.Linear(3, 3) for _ in range(3))
        self.asked: list[str] = []

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, input_ids, **more):
        if self.asked == ["chosen"]:
            self.chosen(torch.ones(5, 3))
        if self.asked == ["broken"]:
            self.broken(torch.full((*input_ids.shape, 3), torch.nan))
        return self.model(input_ids, **more)


@pytest.mark.parametrize(
    ("name", "says"),
    [("idle", "no calibration row reaches"), ("chosen", "(5,) vectors for 4 rows"),
     ("broken", "not finite")],
)  # fmt: skip
def test_a_layer_that_has_no_covariance_is_named(model_folder, toy_batch, name, says):
    model = _Experts(load_base(BaseSpec(str(model_folder("llama")))).model)
    model.asked = [name]
    _, batch = toy_batch("causal")
    with pytest.raises(GradexError) as error:
        collect(model, {name: getattr(model, name)}, [batch], "causal")
    assert name in str(error.value) and says in str(error.value)


def test_no_row_is_an_error(attached):
    model, layers = attached("llama")
    with pytest.raises(GradexError, match="no calibration row"):
        collect(model, layers, [], "causal")


# On disk.


def files() -> list[Path]:
    return sorted(FOLDER.iterdir())


def begin(model_folder, batch, kind: str = "corda_kpm", **more) -> nn.Module:
    base = load_base(BaseSpec(str(model_folder("llama"))))
    return attach(base, AdapterSpec(kind=kind, **{"rank": 4} | more), seed=0, batches=[batch])


def test_both_kinds_and_all_ranks_share_a_file(model_folder, toy_batch, monkeypatch):
    _, batch = toy_batch("causal")
    first = begin(model_folder, batch)
    (file,) = files()
    monkeypatch.setattr(covariance_cache, "collect", None)  # nothing is collected again
    again = begin(model_folder, batch)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    for kind, rank in (("corda_ipm", 4), ("corda_kpm", 7), ("corda_kpa", 2)):
        begin(model_folder, batch, kind, rank=rank, alpha=3.0)
    assert files() == [file]


@pytest.mark.parametrize(
    ("name", "kind"), [("corda_kpa", "corda_kpm"), ("ipa", "corda_ipm"), ("kpm", "corda_kpm")]
)
def test_other_names_of_a_kind_are_recorded_as_its_own(name, kind):
    assert TrainArguments(adapter=name).adapter == kind
    assert kind_of(name) is KINDS[kind]


def test_another_model_data_length_or_layer_is_another_file(model_folder, attached, toy_batch):
    examples, batch = toy_batch("causal")
    model, layers = attached("llama")

    def mark(batches=(batch,), layers=layers, family="causal") -> str:
        return fingerprint(model, layers, batches, family)

    shorter = [Example(e.row_id, e.input_ids[:-1], e.labels[:-1]) for e in examples]
    fewer = dict(list(layers.items())[:-1])
    pad = {"family": "causal", "pad_id": 0}
    others = [examples[:3], shorter, examples[::-1]]
    marks = [mark(), *(mark([collate(other, **pad)]) for other in others)]
    marks += [mark([batch, batch]), mark(layers=fewer)]
    weight = next(iter(layers.values())).get_base_layer().weight
    weight.data[0, 0] += 1e-3
    marks.append(mark())
    model.get_base_model().config.rms_norm_eps *= 2
    marks.append(mark())
    assert len(set(marks)) == len(marks)


def test_an_adapter_and_the_place_of_the_model_are_not_in_the_name(
    model_folder, attached, toy_batch
):
    _, batch = toy_batch("causal")
    model, layers = attached("llama")
    before = fingerprint(model, layers, [batch], "causal")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 1
    model.get_base_model().config._name_or_path = "elsewhere"
    assert fingerprint(model, layers, [batch], "causal") == before


def test_a_damaged_file_is_made_again(attached, toy_batch, caplog):
    _, batch = toy_batch("causal")
    model, layers = attached("llama")
    contexts(model, layers, [batch], "causal")
    (file,) = files()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    found = contexts(model, layers, [batch], "causal")
    assert "damaged" in caplog.text and file.read_bytes() == whole
    name = next(iter(layers))
    fresh = collect(model, layers, [batch], "causal")[name]
    assert all(torch.equal(a, b) for a, b in zip(found[name], fresh, strict=True))


def test_an_interrupted_write_leaves_nothing(attached, toy_batch, monkeypatch):
    _, batch = toy_batch("causal")
    model, layers = attached("llama")

    def half(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(covariance_cache, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            contexts(model, layers, [batch], "causal")
    assert files() == []
    contexts(model, layers, [batch], "causal")
    with safe_open(files()[0], "pt") as stream:
        assert len(list(stream.keys())) == len(layers) * len(Context._fields)


def test_a_place_that_cannot_be_written_to(attached, toy_batch, tmp_path):
    (tmp_path / "file").write_text("")
    model, layers = attached("llama")
    _, batch = toy_batch("causal")
    with pytest.raises(GradexError, match="cannot be written"):
        contexts(model, layers, [batch], "causal", folder=tmp_path / "file")
