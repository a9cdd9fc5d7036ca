"""Adapters: no change at first, trained parameters only, exported and loaded without loss."""

import peft
import pytest
import torch

from gradex.adapters import folder as adapters
from gradex.adapters.attach import attach
from gradex.adapters.folder import export, fingerprint
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base


@pytest.fixture
def base(model_folder):
    return lambda kind="llama": load_base(BaseSpec(str(model_folder(kind))))


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 20, 30, 40]])).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_new_adapter_changes_nothing(base, kind):
    plain = logits(base(kind).model)
    torch.testing.assert_close(logits(attach(base(kind), AdapterSpec(), seed=0).eval()), plain)


def test_the_seed_alone_draws_the_adapter(base):
    torch.manual_seed(123)
    first = attach(base(), AdapterSpec(rank=2), seed=5).state_dict()
    state = torch.get_rng_state()
    second = attach(base(), AdapterSpec(rank=2), seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_export_and_load(base, tmp_path):
    model = attach(base(), AdapterSpec(rank=2), seed=0).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    export(model, tmp_path / "a", base_path="base", card="# card\n")
    torch.testing.assert_close(logits(adapters.load(base(), tmp_path / "a")), logits(model))
    assert (tmp_path / "a/README.md").read_text() == "# card\n"
    export(model, tmp_path / "a", base_path="base", card=None)
    assert not (tmp_path / "a/README.md").exists()


def test_the_fingerprint_is_of_the_content(base, tmp_path):
    model = attach(base(), AdapterSpec(rank=2), seed=0)
    export(model, tmp_path / "a", base_path="here", card="")
    export(model, tmp_path / "b", base_path="there", card="")
    export(
        attach(base(), AdapterSpec(rank=2, alpha=7.0), seed=0),
        tmp_path / "c",
        base_path="",
        card="",
    )
    marks = [fingerprint(tmp_path / name) for name in "abc"]
    assert marks[0] == marks[1] != marks[2]


def test_only_the_named_layers_are_adapted(base):
    model = attach(base(), AdapterSpec(targets=("q_proj",)), seed=0)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all("q_proj" in name for name in trained)


def test_layers_that_are_not_there_print_those_that_are(base):
    with pytest.raises(GradexError, match=r"c_attn is in no layer.*q_proj"):
        attach(base(), AdapterSpec(targets=("c_attn",)), seed=0)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    export(attach(base(), AdapterSpec(), seed=0), tmp_path / "a", base_path="", card="")
    with pytest.raises(GradexError):
        adapters.load(base("gpt2"), tmp_path / "a")


@pytest.mark.parametrize(
    "make",
    [
        lambda common: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, **common),
        lambda common: peft.LoraConfig(r=3, use_dora=True, **common),
        lambda common: peft.VeraConfig(r=3, **common),
    ],
    ids=["adalora", "dora", "vera"],
)
def test_several_adapters_on_one_base_each_work_as_they_did_alone(base, tmp_path, make):
    common = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    alone = {}
    for number in range(2):
        model = peft.get_peft_model(base().model, make(common)).eval()
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        export(model, tmp_path / f"group-{number}", base_path="", card=None)
        alone[f"group-{number}"] = logits(model)
    model = adapters.load_all(base(), {name: tmp_path / name for name in alone})
    for name, wanted in reversed(alone.items()):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model), wanted)
    assert not torch.equal(*alone.values())
