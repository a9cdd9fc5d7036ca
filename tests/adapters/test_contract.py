"""What every kind of adapter keeps to, on every family of models that it works on."""

import peft
import pytest
import torch
from adapting import (
    FAMILIES,
    STEPS,
    Bases,
    Moved,
    assert_close_in_norm,
    at_once,
    begun,
    by_loop,
    losses,
    trained,
)

from gradex.adapters.folder import load
from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.data.tokens import Encoder
from gradex.errors import GradexError
from gradex.gradients.per_sample import GradientPass, LoopPass
from gradex.models.load import BaseSpec
from gradex.training.fit import fit
from gradex.training.recipe import Recipe

PAIRS = [(k, m) for k in KINDS for m in FAMILIES if m != "gpt2" or KINDS[k].conv1d]


@pytest.fixture(scope="module")
def bases(model_folder):
    return Bases(model_folder)


@pytest.fixture(scope="module")
def moved(bases, tmp_path_factory):
    return Moved(bases, tmp_path_factory.mktemp("moved"))


def spec_of(kind: str) -> AdapterSpec:
    return AdapterSpec(kind=kind, rank=4, alpha=6.0, options=parse_options(kind, []))


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_changes_nothing_at_first(bases, toy_batch, kind, model):
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    plain = losses(bases(model).model, batch, family)
    adapted = begun(bases(model), spec_of(kind), batch).eval()
    torch.testing.assert_close(losses(adapted, batch, family), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_what_is_not_the_adapter_is_frozen_as_it_was(bases, toy_batch, kind, model):
    _, batch = toy_batch(FAMILIES[model])
    plain = dict(bases(model).model.named_parameters())
    adapted = begun(bases(model), spec_of(kind), batch)
    changed = set()
    for name, parameter in adapted.named_parameters():
        own = name.removeprefix("base_model.model.").replace(".base_layer", "")
        own = own.replace(".original_module", "")
        if own in plain and not torch.equal(parameter, plain[own]):
            changed.add(own)
        assert not (parameter.requires_grad and own in plain) or kind == "full"
    assert bool(changed) == KINDS[kind].from_base


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_draws_it(bases, toy_batch, kind):
    _, batch = toy_batch("causal")
    torch.manual_seed(123)
    first = begun(bases("llama"), spec_of(kind), batch, seed=5).state_dict()
    state = torch.get_rng_state()
    second = begun(bases("llama"), spec_of(kind), batch, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_is_loaded_as_it_was_exported(bases, moved, toy_batch, kind, model):
    """The same losses, and the same parameters under the same names to go on from."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    adapted, folder = moved(spec_of(kind), model, batch)
    loaded = load(bases(model), folder)
    torch.testing.assert_close(losses(loaded, batch, family), losses(adapted, batch, family))
    assert list(trained(loaded)) == list(trained(adapted))
    for own, parameter in zip(trained(loaded).values(), trained(adapted).values(), strict=True):
        torch.testing.assert_close(own, parameter, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "model"), [(k, m) for k, m in PAIRS if k != "full"])
def test_loads_on_the_plain_base_by_peft_alone(bases, moved, toy_batch, kind, model):
    """Whatever was taken out of the base: who knows nothing of gradex gets the trained model."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    adapted, folder = moved(spec_of(kind), model, batch)
    loaded = peft.PeftModel.from_pretrained(bases(model).model, folder).eval()
    torch.testing.assert_close(
        losses(loaded, batch, family), losses(adapted, batch, family), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_gradients_are_those_of_single_backward_passes(bases, moved, toy_batch, kind, model):
    """Where it was trained to, and where it is loaded again from its folder."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    adapted, folder = moved(spec_of(kind), model, batch)
    loaded = load(bases(model), folder)
    way = GradientPass if kind != "full" else LoopPass
    found, taken = at_once(loaded, batch, family)
    assert taken is way
    assert_close_in_norm(found, by_loop(loaded, batch, family), tolerance=1e-5)
    assert_close_in_norm(at_once(adapted, batch, family)[0], found, tolerance=1e-5)


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_move_all_of_it_and_lower_the_loss(
    bases, toy_batch, model_folder, tmp_path, kind, model
):
    """A classifier's new head is among what moves."""
    family = FAMILIES[model]
    examples, batch = toy_batch(family)
    base = bases(model)
    recipe = Recipe(
        BaseSpec(str(model_folder(model))), spec_of(kind), max_steps=STEPS, learning_rate=1e-2,
        batch_size=4,
    )  # fmt: skip
    start = begun(bases(model), spec_of(kind), batch)
    before = {name: parameter.detach().clone() for name, parameter in trained(start).items()}
    at_first = losses(start.eval(), batch, family).mean()
    encoder = Encoder(base.tokenizer, family=family, max_length=64)
    model, _ = fit(recipe, base, examples=examples, encoder=encoder, folder=tmp_path, name="t")
    assert losses(model, batch, family).mean() < at_first
    after = trained(model)
    assert list(after) == list(before)
    unmoved = [name for name in before if torch.equal(after[name], before[name])]
    assert not unmoved
    assert family != "classifier" or any("classifier" in name for name in after)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].conv1d])
def test_layers_that_it_cannot_change_are_refused_by_name(bases, toy_batch, kind):
    _, batch = toy_batch("causal")
    with pytest.raises(GradexError, match=rf"--adapter {kind}: .*Conv1D"):
        begun(bases("gpt2"), spec_of(kind), batch)
