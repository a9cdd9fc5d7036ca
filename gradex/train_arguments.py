"""Flags of one fine-tune: its adapter, its optimizer, its steps.

What is None is as in the meta-training, or there a default (see arguments).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradex.config import option, require_not_negative, require_positive
from gradex.errors import GradexError, unknown
from gradex.records import read_json, require_shape

# Other names of kinds of adapters; flags and records hold the names that these stand for.
ALIASES = {
    **dict.fromkeys(("corda_kpa", "kpa", "kpm"), "corda_kpm"),
    **dict.fromkeys(("corda_ipa", "ipa", "ipm"), "corda_ipm"),
}
PEFT = "peft"  # the kind of adapter that a --peft_config describes
LOGGERS = ("tensorboard", "wandb", "none")
LOOKS = ("eval_every", "early_stopping")


@dataclass(frozen=True)
class AdapterArguments:
    """The adapter."""

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

    def __post_init__(self):
        object.__setattr__(self, "adapter", ALIASES.get(self.adapter, self.adapter))
        require_positive(self, "lora_r", "lora_alpha", "calib_rows")
        require_not_negative(self, "lora_dropout")
        if self.lora_dropout is not None and self.lora_dropout >= 1:
            raise GradexError(f"--lora_dropout: found {self.lora_dropout}, expected less than 1")
        if self.peft_config is not None:
            object.__setattr__(self, "peft_config", _content_of(self.peft_config))
            if self.adapter not in (None, PEFT):
                raise GradexError(
                    f"--adapter {self.adapter}: found beside --peft_config, which says itself what "
                    "the adapter is; leave one of them out"
                )
        elif self.adapter == PEFT:
            raise GradexError("--adapter peft: say which with --peft_config FILE.json")


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


@dataclass(frozen=True)
class OptimizerArguments:
    """The optimizer and its schedule."""

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

    def __post_init__(self):
        require_positive(self, "learning_rate", "loraplus_ratio")
        require_not_negative(self, "weight_decay", "warmup_steps")
        if self.learning_rate is not None and self.learning_rate > 1:
            raise GradexError(f"--learning_rate: found {self.learning_rate}, expected at most 1")


@dataclass(frozen=True)
class StepArguments:
    """The steps of training, and the devices."""

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
        require_positive(
            self, "max_steps", "num_train_epochs", "per_device_train_batch_size",
            "tokens_per_batch", "gradient_accumulation_steps", *LOOKS, "num_nodes",
        )  # fmt: skip
        require_not_negative(self, "seed")
        if None not in (self.tokens_per_batch, self.per_device_train_batch_size):
            raise GradexError(
                "--tokens_per_batch: found beside --per_device_train_batch_size, and a batch is "
                "filled by one of them; leave the other out"
            )
        for name in self.report_to or ():
            if name not in LOGGERS:
                raise unknown("logger", name, LOGGERS, "--report_to")


@dataclass(frozen=True)
class TrainArguments(AdapterArguments, OptimizerArguments, StepArguments):
    """One fine-tune. In later stages, what is None is as in the meta-training."""

    def __post_init__(self):
        AdapterArguments.__post_init__(self)
        OptimizerArguments.__post_init__(self)
        StepArguments.__post_init__(self)


def require_one_device(config: TrainArguments, why: str) -> None:
    """Several devices are several processes, which only single trainings are made for."""
    if config.devices != "1" or config.num_nodes != 1:
        raise GradexError(f"--devices: found {config.devices} on {config.num_nodes} nodes; {why}")


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
