"""A recipe: everything a fine-tune needs. Selection and trainer meet only here."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradex.adapters.kinds import kind_of, parse_options, require_sound, unread_flags
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, base_spec
from gradex.train_arguments import PEFT, TrainArguments
from gradex.training.optimizers import OptimizerSpec, parse_optimizer_args, require_optimizer


@dataclass(frozen=True)
class Recipe:
    """One fine-tune of a base model. Steps are optimizer steps. A batch has `batch_size` rows, or,
    where that is None, as many as fill `tokens_per_batch`."""

    base: BaseSpec
    adapter: AdapterSpec
    max_steps: int
    learning_rate: float
    batch_size: int | None
    tokens_per_batch: int | None = None
    start_source: str | None = None
    start_rows: int = 256
    accumulate: int = 1
    weight_decay: float = 0.0
    warmup_steps: int = 0
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    precision: str = "32-true"
    devices: str = "1"
    num_nodes: int = 1
    strategy: str = "auto"
    seed: int = 0


def make_recipe(settings: dict[str, Any], *, is_new: bool = True) -> Recipe:
    """The recipe of a run's resolved settings (all defaults filled in). `is_new`: the training
    makes an adapter, which its steps have to be enough for; otherwise it goes on from one."""
    base = base_spec(settings)
    adapter = make_spec(settings, steps=settings["max_steps"] if is_new else 0)
    if base.qlora and not kind_of(adapter.kind).quantised:
        raise GradexError(
            f"--qlora: found with --adapter {adapter.kind}, which changes the base's weights or "
            "computes with them, and 4 bits do not allow that; leave one of them out"
        )
    return Recipe(
        base=base,
        adapter=adapter,
        max_steps=settings["max_steps"],
        learning_rate=settings["learning_rate"],
        batch_size=settings["per_device_train_batch_size"],
        tokens_per_batch=settings["tokens_per_batch"],
        start_source=settings["calib_source"],
        start_rows=settings["calib_rows"],
        accumulate=settings["gradient_accumulation_steps"],
        weight_decay=settings["weight_decay"],
        warmup_steps=settings["warmup_steps"],
        optimizer=make_optimizer_spec(settings),
        precision=settings["precision"] or ("bf16-mixed" if settings["bf16"] else "32-true"),
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"],
        seed=settings["seed"],
    )


def make_spec(settings: dict[str, Any], *, steps: int = 0) -> AdapterSpec:
    """The adapter of a run's settings, refused where it cannot be (in so many steps)."""
    kind = settings["adapter"]
    options = parse_options(kind, settings["adapter_args"] or [])
    if kind == PEFT:  # which has no other scale, targets or dropout than those of its config
        spec = AdapterSpec(kind=kind, options=json.loads(settings["peft_config"]))
    else:
        spec = AdapterSpec(
            kind=kind,
            rank=settings["lora_r"],
            alpha=settings["lora_alpha"],
            dropout=settings["lora_dropout"],
            targets=tuple(settings["lora_target_modules"]),
            options=options,
        )
    require_sound(spec, steps=steps)
    return spec


def make_optimizer_spec(settings: dict[str, Any]) -> OptimizerSpec:
    """The optimizer and schedule of a run's settings, refused where they cannot be."""
    name = settings["optimizer"]
    spec = OptimizerSpec(
        name=name,
        options=parse_optimizer_args(name, settings["optimizer_args"] or []),
        schedule=settings["lr_scheduler_type"],
        loraplus_ratio=settings["loraplus_ratio"],
    )
    require_optimizer(
        spec, adapter=settings["adapter"], warmup=settings["warmup_steps"],
        steps=settings["max_steps"],
    )  # fmt: skip
    return spec


def require_effect(config: TrainArguments, usual: Mapping[str, Any]) -> None:
    """Refuse a flag that means nothing to the kind of adapter, unless it has its `usual` value: a
    default, or what the meta-training had."""
    kind = config.adapter or usual["adapter"]
    for flag in unread_flags(kind):
        value = getattr(config, flag)
        if value not in (None, usual.get(flag)):
            raise GradexError(
                f"--{flag}: found {value}, which means nothing to --adapter {kind}; leave it out"
            )


def with_steps(config: TrainArguments, *, rows: int, batches: dict[str, Any]) -> TrainArguments:
    """`config` with its epochs turned into steps, unless it names steps itself.

    `batches` has the batch size and accumulation where the config leaves them open.
    """
    if config.max_steps is not None or config.num_train_epochs is None:
        return replace(config, num_train_epochs=None)
    if not config.devices.isdigit():
        raise GradexError(
            f"--num_train_epochs: how many steps it means is open with --devices {config.devices}; "
            "say --max_steps"
        )
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    size, accumulate = (getattr(config, name) or batches.get(name) for name in names)
    if config.tokens_per_batch or size is None:
        raise GradexError(
            "--tokens_per_batch: how many steps an epoch has depends on how long its rows are; say "
            "--max_steps"
        )
    rows_per_step = size * accumulate * int(config.devices) * config.num_nodes
    steps = steps_for_epochs(config.num_train_epochs, rows=rows, rows_per_step=rows_per_step)
    return replace(config, max_steps=steps, num_train_epochs=None)


def steps_for_epochs(epochs: float, *, rows: int, rows_per_step: int) -> int:
    """Optimizer steps that see every row `epochs` times."""
    return max(1, math.ceil(epochs * rows / rows_per_step))
