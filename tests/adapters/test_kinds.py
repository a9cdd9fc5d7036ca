"""Which adapters there are, their settings, and what cannot be: told before any training."""

from dataclasses import replace

import pytest
import torch
from adapting import Bases, begun, trained

from gradex.adapters.attach import attach
from gradex.adapters.kinds import (
    KINDS,
    kind_of,
    parse_options,
    require_sound,
    unread_flags,
)
from gradex.adapters.spec import AdapterSpec
from gradex.arguments import DEFAULTS, inheriting
from gradex.errors import GradexError
from gradex.train_arguments import PEFT, TrainArguments, TrialArguments
from gradex.training.recipe import make_recipe, require_effect

SETTINGS = DEFAULTS | {
    "adapter_args": None, "peft_config": None, "calib_source": None, "max_steps": 4,
    "precision": None, "bf16": False, "qlora": False, "devices": "1", "num_nodes": 1,
    "strategy": "auto", "num_train_epochs": None, "seed": 0, "model_name_or_path": "demo",
    "trust_remote_code": False,
    "allow_pickle": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(model_folder):
    return Bases(model_folder)


def test_an_unknown_kind_is_told_the_known_ones():
    with pytest.raises(GradexError, match=r"unknown adapter 'pisa'; known are: .*pissa.*peft"):
        kind_of("pisa")


def test_settings_are_those_of_the_kind():
    assert parse_options("miss_mini", ["mini_r=2"]) == {"mini_r": 2}
    assert parse_options("lora", []) == {}


@pytest.mark.parametrize(
    ("kind", "word", "says"),
    [
        ("lora", "mini_r=2", "found with --adapter lora, but it is a setting of miss_mini"),
        ("lora", "gone=2", "lora has no settings of its own"),
        ("miss_mini", "mini=2", "mini: no setting of miss_mini; known are: mini_r"),
        ("miss_mini", "mini_r=two", "expected mini_r=INT"),
    ],
)
def test_a_setting_that_the_kind_does_not_have(kind, word, says):
    with pytest.raises(GradexError, match=says):
        parse_options(kind, [word])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].dropout])
def test_dropout_where_there_is_none(kind):
    options = parse_options(kind, [])
    require_sound(AdapterSpec(kind=kind, options=options))
    with pytest.raises(GradexError, match=f"--lora_dropout: .*{kind} has no dropout"):
        require_sound(AdapterSpec(kind=kind, dropout=0.1, options=options))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].quantised])
def test_four_bits_and_a_kind_that_changes_or_reads_the_weights(kind):
    """Told by the flags alone, wherever there is a GPU."""
    with pytest.raises(GradexError, match=f"--qlora: found with --adapter {kind}"):
        make_recipe(SETTINGS | {"adapter": kind, "qlora": True})


def spec_of(kind: str, **more) -> AdapterSpec:
    return AdapterSpec(kind=kind, rank=4, alpha=6.0, options=parse_options(kind, []), **more)


CHANGES = {"lora_r": {"rank": 2}, "lora_alpha": {"alpha": 3.0}}


@pytest.mark.parametrize("flag", CHANGES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
def test_a_flag_changes_an_adapter_unless_it_is_told_to_mean_nothing(bases, toy_batch, kind, flag):
    """The table of flags without a meaning is that of the adapters themselves."""
    _, batch = toy_batch("causal")
    specs = spec_of(kind), replace(spec_of(kind), **CHANGES[flag])
    found = []
    for spec in specs:
        model = begun(bases("llama"), spec, batch).eval()
        for parameter in trained(model).values():
            parameter.data += 0.1
        with torch.no_grad():
            found.append(model(torch.tensor([[1, 20, 30, 40]])).logits)
    assert torch.equal(*found) == (flag in unread_flags(kind))


@pytest.mark.parametrize("kind", [*KINDS, PEFT])
def test_a_flag_that_means_nothing_is_refused_where_it_was_given(kind):
    values = {
        "lora_r": 3, "lora_alpha": 3.0, "lora_dropout": 0.1, "lora_target_modules": ["q_proj"],
        "calib_source": "copy", "calib_rows": 3,
    }  # fmt: skip
    for flag in unread_flags(kind):
        given = TrainArguments(adapter=kind if kind != PEFT else None, **{flag: values[flag]})
        given = given if kind != PEFT else replace(given, peft_config='{"peft_type": "LOHA"}')
        with pytest.raises(GradexError, match=f"--{flag}: .*means nothing to --adapter {kind}"):
            require_effect(given, SETTINGS | {"adapter": kind})
        require_effect(TrainArguments(adapter=given.adapter), SETTINGS | {"adapter": kind})


def test_what_is_inherited_does_not_trip():
    """Neither what the meta-training had, nor the same said again by a run's own config."""
    recorded = SETTINGS | {"adapter": "lora", "lora_alpha": 64.0, "calib_source": "copy"}
    config = TrialArguments(adapter="ia3")
    require_effect(config, recorded)
    resolved = inheriting(config, recorded)
    assert resolved.lora_alpha == 64.0 and resolved.calib_source is None
    require_effect(resolved, recorded)
    with pytest.raises(GradexError, match=r"--lora_alpha: found 8\.0"):
        require_effect(TrialArguments(adapter="ia3", lora_alpha=8.0), recorded)


@pytest.mark.parametrize("kind", ["lora", "milora", "ia3", "bone", "vera"])
def test_every_target_must_be_a_layer(bases, toy_batch, kind):
    """peft takes those that it finds, and says nothing of the others."""
    _, batch = toy_batch("causal")
    with pytest.raises(
        GradexError, match=r"q_prj is in no layer .*\(near: q_proj.*layers are down_proj"
    ):
        begun(bases("llama"), spec_of(kind, targets=("q_proj", "q_prj")), batch)
    found = trained(begun(bases("llama"), spec_of(kind, targets=("self_attn.q_proj",)), batch))
    assert found and all("q_proj" in name or "vera_" in name for name in found)


def test_an_empty_target_is_no_layer(bases):
    with pytest.raises(GradexError, match="modules: a name of no letters is in no layer"):
        attach(bases("llama"), AdapterSpec(targets=("",)), seed=0)


def test_a_part_that_is_no_layer(bases):
    with pytest.raises(GradexError, match=r"--adapter lora: not for this model .*LlamaAttention"):
        attach(bases("llama"), AdapterSpec(targets=("self_attn",)), seed=0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, about what is refused here
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].from_base])
@pytest.mark.parametrize(("model", "target"), [("llama", "embed_tokens"), ("gpt2", "lm_head")])
def test_no_part_is_taken_out_of_an_embedding(bases, toy_batch, kind, model, target):
    """Nor out of a head with the embedding's weight: the inputs would change with it."""
    _, batch = toy_batch("causal")
    with pytest.raises(GradexError, match=rf"{target} is an embedding or shares .*{kind}"):
        begun(bases(model), spec_of(kind, targets=(target,)), batch)


LARGE = ["milora", "pissa", "mid", "olora", "mica", "miss", "bone"]


@pytest.mark.parametrize("kind", LARGE)
def test_a_rank_larger_than_the_layer(bases, toy_batch, kind):
    _, batch = toy_batch("causal")
    with pytest.raises(GradexError, match=r"(lora_r|--adapter)"):
        begun(bases("llama"), replace(spec_of(kind), rank=64), batch)


def test_feed_forward_layers_are_known_by_their_last_name(bases, toy_batch):
    """(IA)^3 scales what goes into them, whatever more of the name is given."""
    _, batch = toy_batch("causal")
    for target in ("down_proj", "mlp.down_proj"):
        model = begun(bases("llama"), spec_of("ia3", targets=(target,)), batch)
        assert {p.shape for p in trained(model).values()} == {torch.Size([1, 48])}
