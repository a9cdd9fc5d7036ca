"""A recipe as the lines of a table: what a person needs to train the same again."""

from collections.abc import Mapping
from typing import Any

from gradex.adapters.kinds import unread_flags
from gradex.adapters.spec import AdapterSpec
from gradex.reporting.markdown import code, table_row
from gradex.training.recipe import Recipe


def recipe_table(recipe: Recipe, kept_step: int | None = None) -> str:
    """`kept_step`: whose adapter it is, where that may not be the last one."""
    lines = _adapter(recipe.adapter) | _optimizer(recipe) | _training(recipe, kept_step)
    rows = [["Setting", "Value"], ["---", "---"], *([name, lines[name]] for name in lines)]
    return "\n".join(["## Recipe", "", *map(table_row, rows)])


def _adapter(spec: AdapterSpec) -> dict[str, str]:
    unread = unread_flags(spec.kind)
    values = {
        "lora_r": ("Rank", str(spec.rank)),
        "lora_alpha": ("Alpha", f"{spec.alpha:g}"),
        "lora_dropout": ("Dropout", f"{spec.dropout:g}"),
        "lora_target_modules": ("Layers", " ".join(map(code, spec.targets))),
    }
    found = dict(values[flag] for flag in values if flag not in unread)
    return {"Adapter": code(spec.kind)} | found | _options("Adapter settings", spec.options)


def _optimizer(recipe: Recipe) -> dict[str, str]:
    spec = recipe.optimizer
    lines = {"Optimizer": code(spec.name)} | _options("Optimizer settings", spec.options)
    if spec.loraplus_ratio != 1:
        lines["LoRA+ ratio"] = f"{spec.loraplus_ratio:g}"
    warmup = f", {recipe.warmup_steps} steps of warm-up" if recipe.warmup_steps else ""
    return lines | {
        "Schedule": code(spec.schedule) + warmup,
        "Learning rate": f"{recipe.learning_rate:g}",
        "Weight decay": f"{recipe.weight_decay:g}",
    }


def _training(recipe: Recipe, kept_step: int | None) -> dict[str, str]:
    kept = "" if kept_step is None else f"; this is step {kept_step}, the best on the select rows"
    return {
        "Steps": f"{recipe.max_steps}{kept}",
        "Batch": _batch(recipe),
        "Precision": code(recipe.precision),
        "Seed": str(recipe.seed),
    }


def _batch(recipe: Recipe) -> str:
    size = f"{recipe.batch_size} rows"
    if recipe.batch_size is None:
        size = f"up to {recipe.tokens_per_batch} padded tokens"
    times = [] if recipe.accumulate == 1 else [f"{recipe.accumulate} a step"]
    if recipe.devices != "1" or recipe.num_nodes != 1:
        times.append(f"on {code(recipe.devices)} devices of {recipe.num_nodes} nodes")
    return ", ".join([size, *times])


def _options(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    given = {key: value for key, value in options.items() if value is not None}
    return {name: " ".join(code(f"{key}={given[key]}") for key in given)} if given else {}
