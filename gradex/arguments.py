"""Flags that several stages share, and where their values come from when they are not given.

A flag left out is None here. `meta_train` fills it with a default below (the demo model has its
own); every later stage repeats what the stage before it used, so that data, model and recipe are
said once. Seed and devices are each stage's own.

`--target` names places of target rows where sources are read, and targets of the store after it.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from gradex.config import (
    option,
    parse_values,
    require_fraction,
    require_not_negative,
    require_owner,
    require_positive,
    with_defaults,
)
from gradex.errors import GradexError
from gradex.train_arguments import LOOKS, PEFT, TrainArguments

TrainT = TypeVar("TrainT", bound=TrainArguments)
EstimatorT = TypeVar("EstimatorT", bound="EstimatorArguments")
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

    def for_estimator(self: EstimatorT, name: str) -> EstimatorT:
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


def inheriting(config: TrainT, recorded: dict[str, Any]) -> TrainT:
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
