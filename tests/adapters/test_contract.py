"""What every kind of adapter keeps to, on every family of models that it works on."""

import peft
import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.folder import export, load
from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq"}
# peft has no MiSS for GPT-2's Conv1D.
PAIRS = [(k, m) for k in KINDS for m in FAMILIES if m != "gpt2" or KINDS[k].conv1d]


@pytest.fixture
def base(model_folder):
    return lambda model: load_base(BaseSpec(str(model_folder(model))))


def spec_of(kind: str, **more) -> AdapterSpec:
    return AdapterSpec(kind=kind, rank=4, alpha=6.0, options=parse_options(kind, []), **more)


def begun(base, kind: str, batch):
    return attach(base, spec_of(kind), seed=0, steps=4, batches=[batch])


def shaken(model):
    """The model with every trained number moved, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def losses(model, batch, family):
    with torch.no_grad():
        return sample_objectives(model, dict(batch), family)[0]["loss"]


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_changes_nothing_at_first(base, toy_batch, kind, model):
    _, batch = toy_batch(FAMILIES[model])
    plain = losses(base(model).model, batch, FAMILIES[model])
    adapted = begun(base(model), kind, batch).eval()
    torch.testing.assert_close(losses(adapted, batch, FAMILIES[model]), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "model"), PAIRS)
def test_is_loaded_as_it_was_exported(base, toy_batch, tmp_path, kind, model):
    """The same losses, and the same parameters under the same names to go on from."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    trained = shaken(begun(base(model), kind, batch))
    export(trained, tmp_path / "a", base_path="base", card=None)
    loaded = load(base(model), tmp_path / "a")
    torch.testing.assert_close(losses(loaded, batch, family), losses(trained, batch, family))
    own = {n: p for n, p in loaded.named_parameters() if p.requires_grad}
    for name, parameter in trained.named_parameters():
        assert parameter.requires_grad == (name in own)
        if name in own:
            torch.testing.assert_close(own[name], parameter, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "model"), [(k, m) for k, m in PAIRS if k != "full"])
def test_loads_on_the_plain_base_by_peft_alone(base, toy_batch, tmp_path, kind, model):
    """Whatever was taken out of the base: who knows nothing of gradex gets the trained model."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    trained = shaken(begun(base(model), kind, batch))
    export(trained, tmp_path / "a", base_path="base", card=None)
    loaded = peft.PeftModel.from_pretrained(base(model).model, tmp_path / "a").eval()
    torch.testing.assert_close(
        losses(loaded, batch, family), losses(trained, batch, family), rtol=1e-4, atol=1e-5
    )
