"""What is taken out of a base: closed forms, precision, and that no other base is taken for it."""

import peft
import pytest
import torch
from adapting import losses, shaken

from gradex.adapters.attach import attach
from gradex.adapters.folder import export, load, load_all, trained_lora
from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.residual import ADAPTER, base_weight, lora_layers, mark, taken_out
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq"}
FROM_BASE = [name for name, kind in KINDS.items() if kind.from_base]
RANK, ALPHA = 4, 6.0
# How far from one another two roundings of one number are at most, relative to it.
PRECISION = {"float32": 1e-5, "bfloat16": 2**-8}


@pytest.fixture
def base(model_folder):
    return lambda model="llama", dtype="float32": load_base(
        BaseSpec(str(model_folder(model)), dtype=dtype)
    )


def begun(base, batch, kind="milora"):
    spec = AdapterSpec(rank=RANK, alpha=ALPHA, kind=kind, options=parse_options(kind, []))
    return attach(base, spec, seed=0, batches=[batch])


def weights(model):
    return {name: base_weight(layer).clone() for name, layer in lora_layers(model)}


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("kind", FROM_BASE)
def test_every_layer_is_residual_and_product(base, toy_batch, kind, model, dtype):
    """To the rounding of the residual, which is all that there is of the base's dtype."""
    _, batch = toy_batch(FAMILIES[model])
    plain = base(model, dtype).model
    adapted = begun(base(model, dtype), batch, kind)
    for name, layer in lora_layers(adapted):
        original = plain.get_submodule(name.removeprefix("base_model.model.")).weight.float()
        original = original.T if layer.fan_in_fan_out else original
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        assert a.dtype == b.dtype == torch.float32
        residual = base_weight(layer).float()
        error = (residual + ALPHA / RANK * b @ a - original).abs()
        assert (error <= PRECISION[dtype] * residual.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("kind", FROM_BASE)
def test_taken_out_again_it_is_the_same_to_the_bit(base, toy_batch, tmp_path, kind, dtype):
    _, batch = toy_batch("causal")
    trained = shaken(begun(base(dtype=dtype), batch, kind))
    export(trained, tmp_path / "a", base_path="base", card=None)
    loaded = load(base(dtype=dtype), tmp_path / "a")
    before, after = weights(trained), weights(loaded)
    assert all(torch.equal(before[name], after[name]) for name in before)
    own = dict(loaded.named_parameters())
    assert all(torch.equal(own[name], found) for name, found in trained.named_parameters())
    assert torch.equal(losses(loaded, batch), losses(trained, batch))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_peft_alone_differs_by_the_rounding_of_the_residual(
    base, toy_batch, tmp_path, dtype, error
):
    _, batch = toy_batch("causal")
    trained = shaken(begun(base(dtype=dtype), batch))
    export(trained, tmp_path / "a", base_path="base", card=None)
    alone = peft.PeftModel.from_pretrained(base(dtype=dtype).model, tmp_path / "a").eval()
    found, own = losses(alone, batch), losses(trained, batch)
    torch.testing.assert_close(found, own, rtol=0, atol=error)


def test_both_spaces_stay_apart_in_a_model(base, toy_batch):
    """What milora trains is orthogonal to what is frozen, on either side."""
    _, batch = toy_batch("causal")
    for _, layer in lora_layers(begun(base(), batch)):
        residual = base_weight(layer)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        assert (residual.T @ b).abs().max() < 1e-5 and (residual @ a.T).abs().max() < 1e-5
        assert torch.linalg.svdvals(residual)[-RANK:].max() < 1e-5


def test_what_a_trained_adapter_adds_is_of_twice_the_rank(base, toy_batch, tmp_path):
    """[B | -B0] [A; A0] is what has changed since the base."""
    _, batch = toy_batch("causal")
    trained = shaken(begun(base(), batch))
    export(trained, tmp_path / "a", base_path="base", card=None)
    alone = peft.PeftModel.from_pretrained(base().model, tmp_path / "a")
    added = {name: layer.get_delta_weight(ADAPTER) for name, layer in lora_layers(alone)}
    taken = taken_out(trained)
    for name, layer in lora_layers(trained):
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        a0, b0 = taken[name]
        torch.testing.assert_close(added[name], ALPHA / RANK * (b @ a - b0 @ a0))


def nudged(base):
    base.model.model.layers[1].mlp.down_proj.weight.data *= 1.02
    return base


def test_another_base_is_refused(base, toy_batch, tmp_path):
    """The residual model above all, and one that differs in one layer by a little."""
    _, batch = toy_batch("causal")
    trained = shaken(begun(base(), batch))
    residual = begun(base(), batch).unload()
    export(trained, tmp_path / "a", base_path="base", card=None)
    other = base()
    other.model = residual
    for wrong in (other, nudged(base())):
        for read in (load, lambda found, folder: load_all(found, {"first": folder})):
            with pytest.raises(GradexError, match="a: the adapter belongs to another base"):
                read(wrong, tmp_path / "a")
    with pytest.raises(GradexError, match="another base"):
        load(base("gpt2"), tmp_path / "a")


def test_a_base_in_another_precision_is_the_same_base(base, toy_batch, tmp_path):
    _, batch = toy_batch("causal")
    for own, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        trained = shaken(begun(base(dtype=own), batch))
        export(trained, tmp_path / own, base_path="base", card=None)
        found = losses(load(base(dtype=other), tmp_path / own), batch).float()
        torch.testing.assert_close(found, losses(trained, batch).float(), rtol=0, atol=0.05)


def test_marks_are_of_all_columns():
    weight = torch.zeros(256, 1024)
    for column in (0, 1, 500, 1023):
        other = weight.clone()
        other[:, column] = 1
        assert mark(other) != mark(weight)


def test_marks_see_small_changes_and_no_dtype():
    weight = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    assert mark(weight) == mark(weight.bfloat16()) == mark(weight.double())
    assert mark(weight) != mark(1.01 * weight) and mark(weight) != mark(weight.T)


def test_trained_is_the_first_half_alone(base, toy_batch, tmp_path):
    _, batch = toy_batch("causal")
    model = shaken(begun(base(), batch))
    export(model, tmp_path / "a", base_path="base", card=None)
    wanted = {n.replace(f".{ADAPTER}", ""): p for n, p in model.named_parameters() if "lora_" in n}
    torch.testing.assert_close(trained_lora(tmp_path / "a"), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"base": 3}', '{"base": {"gone": "x"}}'])
def test_marks_that_are_damaged_are_an_error(base, toy_batch, tmp_path, content):
    _, batch = toy_batch("causal")
    export(begun(base(), batch), tmp_path / "a", base_path="base", card=None)
    (tmp_path / "a/gradex.json").write_text(content)
    with pytest.raises(GradexError, match="a"):
        load(base(), tmp_path / "a")


def test_a_weight_of_two_layers_is_refused(base):
    """GPT-2's head is its embedding: what is taken out of one would be missing in the other."""
    spec = AdapterSpec(kind="milora", rank=2, targets=("lm_head",))
    with (
        pytest.warns(UserWarning),
        pytest.raises(GradexError, match="lm_head is an embedding or"),
    ):
        attach(base("gpt2"), spec, seed=0)


def test_what_was_trained_is_read_without_what_was_taken_out(base, toy_batch, tmp_path):
    model = shaken(begun(base(), toy_batch("causal")[1]))
    export(model, tmp_path, base_path="the/base", card=None)
    found = trained_lora(tmp_path)
    for name, layer in lora_layers(model):
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part)[ADAPTER].weight
            torch.testing.assert_close(found.pop(f"{name}.{part}.weight"), weight.detach())
    assert not found
