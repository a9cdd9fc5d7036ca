"""Any adapter of peft's, in the words of peft itself: the kind `peft`.

A JSON object names the `peft_type` and settings of that type. What follows from the model is filled
in: the task, which way round its layers keep their weights, and all linear layers as the targets of
types that change these. Refused is what a config alone does not make: starts that have a kind of
their own here, and types that need more of a training than a loss.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gradex.adapters.beginning import Beginning
from gradex.adapters.peft_configs import TASK_TYPES
from gradex.adapters.spec import ALL_LINEAR, AdapterSpec
from gradex.errors import GradexError, first_line, unknown

FLAG = "--peft_config"
# What peft writes beside the settings: where an adapter came from, and how it was loaded.
ORIGINS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")
# Types whose layers are others than the linear ones; peft knows them for many models.
OWN_TARGETS = ("ADAPTION_PROMPT", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")
REFUSED_TYPES = {
    "ADALORA": "allots its ranks while it is trained; say --adapter adalora",
    "MULTITASK_PROMPT_TUNING": "has to be told the task of every sample",
    "POLY": "has to be told the task of every sample",
    "SHADOW": "runs a second model beside this one",
    "XLORA": "mixes LoRA adapters that are trained already",
}
REFUSED_SETTINGS = {
    "kasa_config": "adds a penalty to the loss",
    "monteclora_config": "adds a penalty to the loss",
    "megatron_config": "is for models of Megatron",
    "layer_replication": "changes the model below the adapter",
    "arrow_config": "mixes LoRA adapters that are trained already",
}
# Starts of LoRA that take a part out of the base or read rows: kinds of their own.
STARTS = {
    "pissa": "--adapter pissa",
    "pissa_niter": "--adapter pissa",
    "olora": "--adapter olora",
    "corda": "--adapter corda_kpm or corda_ipm",
    "eva": "--adapter eva",
    "lora_ga": "--adapter loraga",
    "loftq": "--adapter lora with --qlora",
}


def require_settings(content: Mapping[str, Any]) -> None:
    """Refuse what can be told without a model."""
    made, kind = _class_of(content), content["peft_type"]
    known = [field.name for field in fields(made)]
    for key in content:
        if key not in known:
            raise unknown(f"setting of {kind}", key, known, FLAG)
    for key, why in REFUSED_SETTINGS.items():
        if content.get(key):
            raise GradexError(f"{FLAG}: {key} {why}, which is not done here; leave it out")
    _require_plain_start(content)
    settings = {key: content[key] for key in _own(content)} | {"task_type": "CAUSAL_LM"}
    if _made(made, settings).is_prompt_learning:
        raise GradexError(
            f"{FLAG}: a prompt of {kind} cannot be gone on with in peft once it is saved, and "
            "gradients are taken at saved adapters; use a type that changes layers"
        )


def _class_of(content: Mapping[str, Any]) -> type:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CLASSES

    if "peft_type" not in content:
        raise GradexError(f"{FLAG}: key 'peft_type' is missing; expected LORA, LOHA, OFT, ...")
    kind = content["peft_type"]
    if kind in REFUSED_TYPES:
        raise GradexError(f"{FLAG}: {kind} {REFUSED_TYPES[kind]}")
    known = {str(name.value): made for name, made in CLASSES.items()}
    if kind not in known:
        raise unknown("peft_type", kind, sorted(set(known) - set(REFUSED_TYPES)), FLAG)
    return known[kind]


def _require_plain_start(content: Mapping[str, Any]) -> None:
    start = content.get("init_lora_weights")
    name = start.split("_niter_")[0] if isinstance(start, str) else start
    if isinstance(name, str) and name.lower() in STARTS:
        raise GradexError(
            f"{FLAG}: init_lora_weights {start} needs more than a config; say "
            f"{STARTS[name.lower()]}"
        )
    if name == "mica" and content.get("use_dora"):
        raise GradexError(
            f"{FLAG}: init_lora_weights mica with use_dora: found both, but MiCA keeps B fixed and "
            "has no DoRA; leave one of them out"
        )


def _own(content: Mapping[str, Any]) -> list[str]:
    return [key for key in content if key != "peft_type" and key not in ORIGINS]


def _made(made: type, settings: Mapping[str, Any]) -> Any:
    try:
        return made(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise GradexError(f"{FLAG}: not a config of peft's ({first_line(error)})") from None


def config(spec: AdapterSpec, beginning: Beginning) -> Any:
    """A config of the type's own class, with what follows from the model."""
    content = spec.options
    made = _class_of(content)
    known = {field.name for field in fields(made)}
    settings = {key: content[key] for key in _own(content)}
    settings |= _fixed(settings, "task_type", TASK_TYPES[beginning.family])
    if "fan_in_fan_out" in known:
        settings |= _fixed(settings, "fan_in_fan_out", beginning.transposed)
    if "target_modules" in known and content["peft_type"] not in OWN_TARGETS:
        settings["target_modules"] = settings.get("target_modules") or ALL_LINEAR
    return _made(made, settings)


def _fixed(settings: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A setting that the model decides; another one would be overruled in silence."""
    given = settings.get(key)
    if given not in (None, False, value):
        raise GradexError(f"{FLAG}: {key} is {given}, but for this model it is {value}")
    return {key: value}


def named_targets(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The layers that a config names one by one; nothing where it has a pattern or none."""
    targets = content.get("target_modules")
    return tuple(targets) if isinstance(targets, list) else ()
