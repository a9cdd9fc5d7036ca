"""--peft_config: every type of peft keeps the contract, or is refused by its name."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from adapting import (
    FAMILIES,
    Bases,
    Moved,
    assert_close_in_norm,
    at_once,
    begun,
    by_loop,
    losses,
    trained,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from gradex.adapters.any_peft import STARTS
from gradex.adapters.folder import load
from gradex.adapters.kinds import require_sound
from gradex.adapters.peft_configs import TASK_TYPES
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.gradients.per_sample import GradientPass
from gradex.train_arguments import TrainArguments

TYPES = {str(name.value): made for name, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
REFUSED = {
    "ADALORA": "--adapter adalora",
    "CARTRIDGE": "a prompt of CARTRIDGE",
    "CPT": "a prompt of CPT",
    "MULTITASK_PROMPT_TUNING": "the task of every sample",
    "POLY": "the task of every sample",
    "PREFIX_TUNING": "a prompt of PREFIX_TUNING",
    "PROMPT_TUNING": "a prompt of PROMPT_TUNING",
    "P_TUNING": "a prompt of P_TUNING",
    "SHADOW": "second model",
    "XLORA": "trained already",
}
NEEDED = {
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 20},
    "OFT": {"r": 0, "oft_block_size": 4},
    "ROAD": {"group_size": 16},
    "TRAINABLE_TOKENS": {"token_indices": [28, 81]},
    "VBLORA": {"num_vectors": 8, "vector_length": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}
# Its sums cancel: with other padding the loop itself differs from itself by 6e-5.
TOLERANCES = {"RANDLORA": 5e-4}
# Of peft about its own types: layers without a bias, kernels that are not built here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def bases(model_folder):
    return Bases(model_folder)


@pytest.fixture(scope="module")
def moved(bases, tmp_path_factory):
    return Moved(bases, tmp_path_factory.mktemp("moved"))


def spec_of(kind: str, **more) -> AdapterSpec:
    small = {"r": 4} if "r" in {field.name for field in fields(TYPES[kind])} else {}
    content = {"peft_type": kind, **small, **NEEDED.get(kind, {}), **more}
    spec = AdapterSpec(kind="peft", options=content)
    require_sound(spec)
    return spec


@pytest.mark.parametrize("kind", sorted(set(TYPES) - set(REFUSED)))
def test_a_type_of_peft_is_carried_home_and_has_exact_gradients(bases, moved, toy_batch, kind):
    _, batch = toy_batch("causal")
    adapted, folder = moved(spec_of(kind), "llama", batch)
    loaded = load(bases("llama"), folder)
    torch.testing.assert_close(losses(loaded, batch, "causal"), losses(adapted, batch, "causal"))
    assert list(trained(loaded)) == list(trained(adapted))
    found, _ = at_once(loaded, batch, "causal")
    wanted = by_loop(loaded, batch, "causal")
    assert_close_in_norm(found, wanted, tolerance=TOLERANCES.get(kind, 1e-5))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_that_a_config_alone_does_not_make_is_refused(kind):
    with pytest.raises(GradexError, match=REFUSED[kind]):
        spec_of(kind)


@pytest.mark.parametrize("kind", ["LOHA", "C3A", "RANDLORA"])
def test_layers_that_are_differentiated_by_their_own_code_are_taken_one_by_one(
    bases, moved, toy_batch, kind
):
    """torch.func has no rule for them, and plain autograd has."""
    _, batch = toy_batch("causal")
    _, taken = at_once(moved(spec_of(kind), "llama", batch)[0], batch, "causal")
    assert taken is GradientPass


@pytest.mark.parametrize(("kind", "model"), [("OFT", "t5"), ("LOHA", "bert"), ("VERA", "gpt2")])
def test_the_task_and_the_layout_are_filled_in(bases, moved, toy_batch, kind, model):
    _, batch = toy_batch(FAMILIES[model])
    adapted, folder = moved(spec_of(kind), model, batch)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["task_type"] == TASK_TYPES[FAMILIES[model]]
    assert settings.get("fan_in_fan_out", False) == (model == "gpt2")
    loaded = load(bases(model), folder)
    torch.testing.assert_close(
        losses(loaded, batch, FAMILIES[model]), losses(adapted, batch, FAMILIES[model])
    )


def test_a_config_that_peft_has_written_is_one(bases, moved, toy_batch):
    """Where it came from is left out; what it is stays."""
    _, batch = toy_batch("causal")
    _, folder = moved(spec_of("LOHA"), "llama", batch)
    content = json.loads((folder / "adapter_config.json").read_text())
    spec = AdapterSpec(kind="peft", options=content)
    require_sound(spec)
    again, first = (trained(begun(bases("llama"), one, batch)) for one in (spec, spec_of("LOHA")))
    assert list(again) == list(first)
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("start", [*STARTS, "pissa_niter_4", "PiSSA"])
def test_a_start_of_its_own_is_a_kind_of_its_own(start):
    if start == "pissa_niter":
        start = "pissa_niter_16"
    with pytest.raises(GradexError, match=f"init_lora_weights {start} .*--adapter"):
        spec_of("LORA", init_lora_weights=start)


BAD = {
    "unknown type": ({"peft_type": "LOHAA"}, ["unknown peft_type 'LOHAA'", "LOHA"]),
    "no type": ({"r": 3}, ["peft_type", "missing"]),
    "unknown setting": ({"peft_type": "LOHA", "alhpa": 3}, ["unknown setting", "'alhpa'", "alpha"]),
    "bad value": ({"peft_type": "OFT", "r": 4, "oft_block_size": 4}, ["not a config of peft's"]),
    "penalty": ({"peft_type": "LORA", "monteclora_config": {"x": 1}}, ["penalty", "leave it out"]),
    "mica and dora": (
        {"peft_type": "LORA", "init_lora_weights": "mica", "use_dora": True}, ["mica", "DoRA"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_refused_without_a_model(name):
    content, says = BAD[name]
    with pytest.raises(GradexError) as refused:
        require_sound(AdapterSpec(kind="peft", options=content))
    assert all(part in str(refused.value) for part in ["--peft_config", *says])


def test_what_this_model_does_not_allow_is_refused(bases, toy_batch):
    _, batch = toy_batch("causal")
    says = {
        "layer_that_is_none": spec_of("LOHA", target_modules=["q_proj", "layer_that_is_none"]),
        "task_type is SEQ_CLS": spec_of("LOHA", task_type="SEQ_CLS"),
        "fan_in_fan_out is True": spec_of("VERA", fan_in_fan_out=True),
        "--adapter peft: not for this model": spec_of("LOHA", target_modules=["self_attn"]),
        r"not for this model \(missing \)": spec_of("LORA", target_modules="("),
        r"not for this model \(unterminated": spec_of("LORA", rank_pattern={"[": 3}),
        r"not for this model \(.*(memory|size)": spec_of("LORA", r=2**60),
    }
    for part, spec in says.items():
        with pytest.raises(GradexError, match=part):
            begun(bases("llama"), spec, batch)
    with pytest.raises(GradexError, match="nothing to train"):
        begun(bases("gpt2"), spec_of("OSF"), batch)


def test_its_content_is_part_of_what_a_training_is():
    """A recipe's hash is of its spec, which holds the content and not the name of a file."""
    Path("a.json").write_text(json.dumps({"peft_type": "LOHA", "r": 3}))
    config = TrainArguments(peft_config="a.json")
    Path("a.json").unlink()
    again = TrainArguments(peft_config=config.peft_config)
    assert again == config and json.loads(config.peft_config) == {"peft_type": "LOHA", "r": 3}
