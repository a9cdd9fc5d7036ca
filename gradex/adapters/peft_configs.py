"""A spec as a config of peft's, one short function a kind."""

from typing import Any

from gradex.adapters.beginning import Beginning
from gradex.adapters.rank_budget import budget_of
from gradex.adapters.spec import ALL_LINEAR, AdapterSpec
from gradex.data.tokens import Family
from gradex.errors import GradexError

TASK_TYPES: dict[Family, str] = {
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "classifier": "SEQ_CLS",
}


def lora(spec: AdapterSpec, beginning: Beginning, **switches: Any):
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        fan_in_fan_out=beginning.transposed,
        **_common(spec, beginning),
        **switches,
    )


def rslora(spec: AdapterSpec, beginning: Beginning):
    return lora(spec, beginning, use_rslora=True)


def dora(spec: AdapterSpec, beginning: Beginning):
    return lora(spec, beginning, use_dora=True)


def mica(spec: AdapterSpec, beginning: Beginning):
    return lora(spec, beginning, init_lora_weights="mica")


def vera(spec: AdapterSpec, beginning: Beginning):
    from peft import VeraConfig

    return VeraConfig(
        r=spec.rank,
        vera_dropout=spec.dropout,
        projection_prng_key=beginning.seed,
        fan_in_fan_out=beginning.transposed,
        **_common(spec, beginning),
    )


def miss(spec: AdapterSpec, beginning: Beginning, **switches: Any):
    from peft import MissConfig

    return MissConfig(
        r=spec.rank, miss_dropout=spec.dropout, **_common(spec, beginning), **switches
    )


def miss_mini(spec: AdapterSpec, beginning: Beginning):
    return miss(spec, beginning, init_weights="mini", mini_r=spec.options["mini_r"])


def bone(spec: AdapterSpec, beginning: Beginning):
    return miss(spec, beginning, init_weights="bat")


def ia3(spec: AdapterSpec, beginning: Beginning):
    """(IA)^3 is not for all layers: those that peft knows for the model, or the named ones."""
    from peft import IA3Config
    from peft.utils import constants

    known = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    feedforward = known.get(beginning.model_type)
    if feedforward is None:
        raise GradexError(
            f"--adapter ia3: which layers of a {beginning.model_type} model are its feed-forward "
            "ones is not known; say it in a --peft_config"
        )
    common = _common(spec, beginning)
    if common["target_modules"] == ALL_LINEAR:
        named = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        common["target_modules"] = named[beginning.model_type]
    return IA3Config(
        feedforward_modules=[
            n for n in common["target_modules"] if n.split(".")[-1] in feedforward
        ],
        fan_in_fan_out=beginning.transposed,
        **common,
    )


def adalora(spec: AdapterSpec, beginning: Beginning):
    from peft import AdaLoraConfig

    budget = budget_of(spec, beginning.steps)
    return AdaLoraConfig(
        init_r=budget.init_r,
        target_r=budget.target_r,
        total_step=budget.total,
        tinit=budget.tinit,
        tfinal=budget.tfinal,
        deltaT=budget.delta,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        fan_in_fan_out=beginning.transposed,
        **{key: spec.options[key] for key in ("beta1", "beta2", "orth_reg_weight")},
        **_common(spec, beginning),
    )


def full(spec: AdapterSpec, beginning: Beginning) -> None:
    return None


def _common(spec: AdapterSpec, beginning: Beginning) -> dict[str, Any]:
    everything = spec.targets == (ALL_LINEAR,)
    return {
        "target_modules": ALL_LINEAR if everything else list(spec.targets),
        "task_type": TASK_TYPES[beginning.family],
    }
