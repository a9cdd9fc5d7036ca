"""Flags that several stages share, and where their values come from when they are not given.

A flag left out is None here. `meta_train` fills it with a default below (the demo model has its
own); every later stage repeats what the stage before it used, so that data, model and recipe are
said once. Seed and devices are each stage's own.

`--target` names places of target rows where sources are read, and targets of the store after it.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from gradex.config import (
    option,
    parse_values,
    require_fraction,
    require_not_negative,
    require_owner,
    require_positive,
    with_defaults,
)
from gradex.errors import GradexError, unknown
from gradex.records import read_json, require_shape

# Other names of kinds of adapters; flags and records hold the names that these stand for.
ALIASES = {
    **dict.fromkeys(("corda_kpa", "kpa", "kpm"), "corda_kpm"),
    **dict.fromkeys(("corda_ipa", "ipa", "ipm"), "corda_ipm"),
}
PEFT = "peft"  # the kind of adapter that a --peft_config describes
LOGGERS = ("tensorboard", "wandb", "none")
DEFAULTS: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32.0,
    "lora_dropout": 0.0,
    "lora_target_modules": ["all-linear"],
    "optimizer": "adamw",
    "lr_scheduler_type": "linear",
    "loraplus_ratio": 1.0,
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": 512,
    "calib_rows": 256,
}
# The demo model is a thousand times smaller than real ones: it wants few and large steps.
DEMO_DEFAULTS: dict[str, Any] = DEFAULTS | {
    "lora_r": 8,
    "lora_alpha": 16.0,
    "learning_rate": 5e-3,
    "max_steps": 100,
    "per_device_train_batch_size": 32,
    "max_length": 64,
}


@dataclass(frozen=True)
class DataArguments:
    """What is trained on, and what it is for."""

    tasks: list[str] = option(
        ["tasks/demo"], "a folder or a list of task YAMLs or data files; a hub data set is "
        "hub:owner/name"
    )  # fmt: skip
    target: list[str] | None = option(
        None, "names of sources, or files of target rows; default: every source with select and "
        "test rows"
    )  # fmt: skip
    held_out: float = option(
        0.2, "share of a source's rows held out for its target, half for select, half for test"
    )
    split_seed: int = option(0, "which rows are held out; the split is by the rows' content")
    max_length: int | None = option(
        None, "tokens a row is cut to; default: 512, 64 for the demo model"
    )

    def __post_init__(self):
        require_positive(self, "max_length")
        require_not_negative(self, "split_seed")
        require_fraction(self, "held_out")


@dataclass(frozen=True)
class ModelArguments:
    """The base model."""

    model_name_or_path: str = option(
        "demo", "a model folder, a hub id, or demo for the embedded toy model"
    )
    bf16: bool = option(False, "load the base in bfloat16 and train in bf16-mixed precision")
    qlora: bool = option(False, "load the base in 4 bits (needs a CUDA GPU and bitsandbytes)")


@dataclass(frozen=True)
class TrustArguments:
    """Said anew in every stage: a file that is handed on must not bring trust with it."""

    trust_remote_code: bool = option(False, "run code that the model brings; read it first")
    allow_pickle: bool = option(False, "read pickle files, which can run code")


@dataclass(frozen=True)
class TrainArguments:
    """One fine-tune. In later stages, what is None is as in the meta-training."""

    adapter: str | None = option(
        None, "kind of adapter: lora, rslora, dora, pissa, milora, ... (README); default: lora"
    )
    adapter_args: list[str] | None = option(
        None, "KEY=VALUE settings that the kind of adapter alone has; default: its own"
    )
    peft_config: str | None = option(
        None,
        "a config of peft's, for adapters that are no --adapter: a JSON file, or its content; "
        "default: none",
    )
    calib_source: str | None = option(
        None, "the source whose rows an adapter begins from, where its kind reads some; default: "
        "all that it is trained on"
    )  # fmt: skip
    calib_rows: int | None = option(None, "how many of its rows, drawn by the seed; default: 256")
    lora_r: int | None = option(None, "rank of the adapter; default: 16, demo 8")
    lora_alpha: float | None = option(None, "scale alpha of the adapter; default: 32, demo 16")
    lora_dropout: float | None = option(None, "dropout on the adapter's input; default: 0")
    lora_target_modules: list[str] | None = option(
        None, "last parts of the names of the layers to adapt; default: all-linear"
    )
    optimizer: str | None = option(
        None, "adamw, sgd, adamp, sgdp, lion, adan, adopt, ademamix or came; default: adamw"
    )
    optimizer_args: list[str] | None = option(
        None, "KEY=VALUE settings that the optimizer alone has; default: its own"
    )
    lr_scheduler_type: str | None = option(
        None, "how the step size falls, as in transformers: linear, cosine, constant, ...; "
        "default: linear"
    )  # fmt: skip
    loraplus_ratio: float | None = option(
        None, "LoRA+: how many times larger the step size is for B (and for DoRA's magnitudes); "
        "default: 1"
    )  # fmt: skip
    learning_rate: float | None = option(None, "peak step size; default: 3e-4, demo 5e-3")
    weight_decay: float | None = option(None, "the optimizer's weight decay; default: 0")
    warmup_steps: int | None = option(
        None, "optimizer steps in which the step size rises linearly from 0; default: 0"
    )
    max_steps: int | None = option(
        None, "optimizer steps; default: from num_train_epochs, demo 100"
    )
    num_train_epochs: float | None = option(
        None, "passes over the rows, where max_steps is not given; default: 3"
    )
    per_device_train_batch_size: int | None = option(
        None, "rows a forward pass and device; default: 8, demo 32"
    )
    tokens_per_batch: int | None = option(
        None, "padded tokens a forward pass and device, filled with whole rows; default: a number "
        "of rows, --per_device_train_batch_size"
    )  # fmt: skip
    gradient_accumulation_steps: int | None = option(
        None, "forward passes an optimizer step; default: 1"
    )
    eval_every: int | None = option(
        None, "optimizer steps from one look at the targets' select loss to the next; default: a "
        "tenth of all steps with --early_stopping, else no look"
    )  # fmt: skip
    early_stopping: int | None = option(
        None, "end after so many looks in a row without a smaller select loss, with the adapter of "
        "the smallest; default: train all steps"
    )  # fmt: skip
    report_to: list[str] | None = option(
        None, "tensorboard, wandb: the numbers of metrics.csv there as well; default: none"
    )
    precision: str | None = option(
        None, "a Lightning precision (32-true, bf16-mixed, ...); default: 32-true, or as --bf16"
    )
    devices: str = option("1", "how many devices to train on, as Lightning takes it")
    num_nodes: int = option(1, "machines to train on")
    strategy: Literal["auto", "ddp"] = option("auto", "how several devices share the work")
    seed: int = option(0, "seed of the adapter, the order of the rows and the dropout")

    def __post_init__(self):
        object.__setattr__(self, "adapter", ALIASES.get(self.adapter, self.adapter))
        require_positive(
            self, "lora_r", "lora_alpha", "calib_rows", "learning_rate", "max_steps",
            "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
            "tokens_per_batch", "eval_every", "early_stopping", "num_nodes", "loraplus_ratio",
        )  # fmt: skip
        require_not_negative(self, "lora_dropout", "weight_decay", "warmup_steps", "seed")
        if self.learning_rate is not None and self.learning_rate > 1:
            raise GradexError(f"--learning_rate: found {self.learning_rate}, expected at most 1")
        if self.peft_config is not None:
            object.__setattr__(self, "peft_config", _content_of(self.peft_config))
        if None not in (self.tokens_per_batch, self.per_device_train_batch_size):
            raise GradexError(
                "--tokens_per_batch: found beside --per_device_train_batch_size, and a batch is "
                "filled by one of them; leave the other out"
            )
        for name in self.report_to or ():
            if name not in LOGGERS:
                raise unknown("logger", name, LOGGERS, "--report_to")
        if self.peft_config is not None and self.adapter not in (None, PEFT):
            raise GradexError(
                f"--adapter {self.adapter}: found beside --peft_config, which says itself what the "
                "adapter is; leave one of them out"
            )
        if self.adapter == PEFT and self.peft_config is None:
            raise GradexError("--adapter peft: say which with --peft_config FILE.json")
        if self.lora_dropout is not None and self.lora_dropout >= 1:
            raise GradexError(f"--lora_dropout: found {self.lora_dropout}, expected less than 1")


def _content_of(peft_config: str) -> str:
    """A --peft_config as one line, which later stages repeat whatever becomes of the file."""
    what, shape = "a config of peft's", {"peft_type": str}
    if not peft_config.lstrip().startswith("{"):
        return json.dumps(read_json(Path(peft_config), what, shape), sort_keys=True)
    try:
        content = json.loads(peft_config)
    except (ValueError, RecursionError) as error:
        raise GradexError(f"--peft_config: not valid JSON ({error}); expected {what}") from None
    require_shape(content, shape, where="--peft_config", what=what)
    return json.dumps(content, sort_keys=True)


def require_one_device(config: TrainArguments, why: str) -> None:
    """Several devices are several processes, which only single trainings are made for."""
    if config.devices != "1" or config.num_nodes != 1:
        raise GradexError(f"--devices: found {config.devices} on {config.num_nodes} nodes; {why}")


LOOKS = ("eval_every", "early_stopping")


def require_no_looks(config: TrainArguments, why: str) -> None:
    """For fine-tunes that are compared with one another."""
    for name in LOOKS:
        if getattr(config, name) is not None:
            raise GradexError(f"--{name}: found {getattr(config, name)}; {why}")


@dataclass(frozen=True)
class TrialArguments(TrainArguments):
    """True fine-tunes of many subsets, which are compared with one another."""

    start: Literal["base", "meta"] = option(
        "base", "train a fresh adapter on the base, or go on from that of the meta-training"
    )
    target: list[str] | None = option(None, "targets to measure; default: all of the store")

    def __post_init__(self):
        TrainArguments.__post_init__(self)
        require_one_device(self, "each of these fine-tunes runs on one device")
        require_no_looks(self, "every subset is trained for the same number of steps; leave it out")
        if self.report_to is not None:
            raise GradexError(
                f"--report_to: found {' '.join(self.report_to)}; these are many fine-tunes, and "
                "each has a metrics.csv of its own; leave it out"
            )
        if self.num_train_epochs is not None:
            raise GradexError(
                "--num_train_epochs: every subset is trained for the same number of steps; say "
                "--max_steps"
            )


@dataclass(frozen=True)
class AnchorArguments:
    """Which subsets to fine-tune on so that estimates become losses with intervals."""

    anchor_size: float = option(
        0.5, "size of the anchors, as a share of the sources: estimates are best near it"
    )
    anchor_seed: int = option(0, "seed of the random subsets that the anchors are chosen from")

    def __post_init__(self):
        require_fraction(self, "anchor_size")
        require_not_negative(self, "anchor_seed")


# Flags that some estimators alone have: with another one they would be read and mean nothing.
ESTIMATORS_WITH = {
    "lam": ("linear", "logistic", "logistic_loss", "shift"),
    "t": ("flow",),
    "compress": ("linear", "flow"),
    "as_published": ("logistic",),
}
ArgumentsT = TypeVar("ArgumentsT", bound="EstimatorArguments")
ArgumentsU = TypeVar("ArgumentsU", bound="TrainArguments")


@dataclass(frozen=True)
class EstimatorArguments:
    """Which store, and how to estimate from it."""

    store: str | None = option(None, "a gradient store; default: the newest run of project's")
    estimator: str = option(
        "linear", "linear, flow, logistic, logistic_loss, shift, surrogate, or a baseline: "
        "influence, cosine, representation, ngram, random, constant"
    )  # fmt: skip
    lam: float | None = option(
        None, "ridge strength, as a share of the rows' mean squared norm; default: linear 0.003, "
        "logistic 1e-6"
    )  # fmt: skip
    t: float | None = option(
        None, "flow: time of training, over the rows' mean squared norm; default: 300"
    )
    as_published: bool = option(
        False, "estimate as the code of 2024 did, to compare with; needs --estimator logistic"
    )
    compress: int | None = option(
        None, "dims that the rows are compressed to first; default: as many as memory allows"
    )
    calibration: str = option(
        "auto", "a run of calibrate, auto (the newest of this store, if there is one), or none"
    )
    runs: list[str] | None = option(
        None, "runs.json files of verify or calibrate, true fine-tunes to fit a surrogate to; "
        "default: none"
    )  # fmt: skip

    def __post_init__(self):
        require_positive(self, "lam", "t", "compress")
        require_owner(self, "estimator", ESTIMATORS_WITH)

    def require_no_calibration(self, why: str) -> None:
        """For stages that look at the estimator itself."""
        if self.calibration not in ("auto", "none"):
            raise GradexError(f"--calibration: found {self.calibration}; {why}; leave it out")

    def for_estimator(self: ArgumentsT, name: str) -> ArgumentsT:
        """The same store and runs for another estimator, at its own defaults."""
        mine = {flag: getattr(EstimatorArguments, flag) for flag in ESTIMATORS_WITH}
        return replace(self, estimator=name, **mine)


@dataclass(frozen=True)
class SubsetArguments:
    """Which subsets: those of a file, or random ones."""

    subsets: str | None = option(None, "a file of subsets, one a line; default: random ones")
    num_subsets: int = option(1000, "random subsets, where no file is given")
    subset_size: float = option(0.5, "their size as a share of the sources")
    seed: int = option(0, "seed of the random subsets")

    def __post_init__(self):
        require_positive(self, "num_subsets")
        require_not_negative(self, "seed")
        require_fraction(self, "subset_size")


# May stay None when all is resolved. Those of the adapter go with its kind alone.
OWN_OF_ADAPTER = ("adapter_args", "peft_config", "calib_source")
# Said anew in every stage; and the two ways to fill a batch, of which one is taken.
OWN_OF_STAGE = (*LOOKS, "report_to")
BATCHES = ("per_device_train_batch_size", "tokens_per_batch")
OPTIONAL = (
    "target",
    "num_train_epochs",
    "precision",
    "optimizer_args",
    "tokens_per_batch",
    *OWN_OF_ADAPTER,
    *OWN_OF_STAGE,
)
# Flags that records of earlier versions lack: trainings were as their defaults say.
ADDED = ("adapter", "calib_rows", "optimizer", "lr_scheduler_type", "loraplus_ratio")
# What a store or selection records of the path before it, and the flags of each part.
RECORDED = {"base": ModelArguments, "tasks": DataArguments, "recipe": TrainArguments}


def record_of(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of a meta-training by part, as stores and selections hand them on."""
    return {part: keep(settings, group) for part, group in RECORDED.items()}


def recorded_settings(record: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The parts of a record as one mapping, checked like flags."""
    settings: dict[str, Any] = {}
    for part, group in RECORDED.items():
        told = {name: value for name, value in record[part].items() if value is not None}
        values = {name: DEFAULTS[name] for name in ADDED} | told
        by_tokens = values.get("tokens_per_batch") is not None
        optional = (*OPTIONAL, *(BATCHES if by_tokens else ()))
        for field in fields(group):
            if values.get(field.name) is None and field.name not in optional:
                raise GradexError(
                    f"{where}: its {part} lacks '{field.name}', which meta_train sets"
                )
        own = {field.name: values.get(field.name) for field in fields(group)}
        settings |= asdict(parse_values(group, own, where=where))
    return settings


def inheriting(config: ArgumentsU, recorded: dict[str, Any]) -> ArgumentsU:
    """`config` with the recorded recipe for what it leaves open."""
    recipe = keep(recorded, TrainArguments) | dict.fromkeys(OWN_OF_STAGE)
    if any(getattr(config, name) is not None for name in BATCHES):
        recipe |= dict.fromkeys(BATCHES)
    kind = PEFT if config.peft_config is not None else config.adapter
    if kind not in (None, recipe["adapter"]) or kind == PEFT:
        recipe |= dict.fromkeys(OWN_OF_ADAPTER) | {"adapter": kind}
    if config.optimizer not in (None, recipe["optimizer"]):
        recipe["optimizer_args"] = None
    return with_defaults(config, recipe)


def combined(recorded: dict[str, Any], config: TrainArguments) -> dict[str, Any]:
    """Recorded settings with this stage's own training and trust flags over them."""
    mine = asdict(config)
    return recorded | keep(mine, TrainArguments) | keep(mine, TrustArguments)


def keep(settings: dict[str, Any], arguments: type) -> dict[str, Any]:
    """The part of a run's settings that one group of flags covers."""
    return {f.name: settings.get(f.name) for f in fields(arguments)}
