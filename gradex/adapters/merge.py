"""An adapter merged into its base: a plain model folder that says what the two say together."""

from pathlib import Path

from safetensors import safe_open
from torch import nn

from gradex.adapters.agreement import Agreement, answers, compare, probe
from gradex.adapters.blocks import HEADS
from gradex.adapters.folder import (
    ADAPTER,
    SETTINGS,
    SETTINGS_OF,
    WEIGHTS,
    load,
    load_all,
    require_adapter,
)
from gradex.adapters.foreign import require_own_base
from gradex.errors import GradexError, first_line
from gradex.models.encoding import on_best_device
from gradex.models.load import Base, BaseSpec, load_base
from gradex.records import read_json


def write_merged(spec: BaseSpec, adapter: Path, folder: Path) -> Agreement:
    """The merged model with its tokenizer in `folder`, which is read back and compared with the
    adapter on its base; an error where they differ."""
    base = on_best_device(load_base(spec, labels=class_names_of(adapter)))
    inputs = probe(base)
    plain = answers(base.model, inputs, of=spec.path)
    model = with_adapter(base, adapter)
    wanted = answers(model, inputs, of=adapter)
    merged(model, adapter).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    del base, model  # two models at once need not fit
    again = on_best_device(load_base(BaseSpec(str(folder), dtype=spec.dtype)))
    agreement = compare(answers(again.model, inputs, of=folder), wanted, plain, dtype=spec.dtype)
    agreement.require(f"{adapter}: the merged model")
    return agreement


def with_adapter(base: Base, folder: Path) -> nn.Module:
    """The base, as it was before any training, with the adapter as peft loads it."""
    if not (folder / SETTINGS).exists():
        return load(base, folder)
    require_changed_weights(folder)
    require_own_base(folder)
    return load_all(base, {ADAPTER: folder})


def require_changed_weights(adapter: Path) -> None:
    """Refuse prompts and prefixes, which are inputs of the model."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig

    require_adapter(adapter)
    kind = read_json(adapter / SETTINGS, SETTINGS_OF).get("peft_type")
    config = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if config is not None and issubclass(config, PromptLearningConfig):
        raise GradexError(
            f"{adapter}: it cannot be merged or converted: it changes no weights of the base, its "
            f"type is {kind}; use it with peft on its base"
        )


def merged(model: nn.Module, adapter: Path) -> nn.Module:
    """The plain model below the adapter, with the adapter in its weights."""
    if not hasattr(model, "peft_config"):
        return model
    try:
        # Not on the wrapper, which hands on whatever the model below it has.
        return type(model.base_model).merge_and_unload(model.base_model)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        # What peft's types without a merge, or with one for some layers alone, answer with.
        kind = model.peft_config[ADAPTER].peft_type.value
        raise GradexError(
            f"{adapter}: it cannot be merged into its base: its type is {kind}, of which peft says "
            f"'{first_line(error)}'; use it with peft on its base"
        ) from None


def class_names_of(adapter: Path) -> list[str] | None:
    """As many names as a classifier's head has outputs; None where the adapter has no head."""
    if not (adapter / SETTINGS).exists():
        names = read_json(adapter / "config.json", "a model's config").get("id2label") or {}
        return [str(name) for name in names.values()] or None
    if read_json(adapter / SETTINGS, SETTINGS_OF).get("task_type") != "SEQ_CLS":
        return None
    with safe_open(adapter / WEIGHTS, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    outputs = [
        shape[0]
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2 and set(HEADS) & set(key.split("."))
    ]
    return [f"LABEL_{number}" for number in range(min(outputs))] if outputs else None
