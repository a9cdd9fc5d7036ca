"""Optimizers and schedules by their names, and LoRA+: what a step is made of.

    gradex finetune --optimizer adamp --optimizer_args delta=0.05 nesterov=true
    gradex finetune --lr_scheduler_type cosine --warmup_steps 20 --loraplus_ratio 16

Weight decay is decoupled, w -= lr * decay * w, but for sgd, which adds it to the gradient, and
adan, which divides: w /= 1 + lr * decay.

LoRA+ (Hayou et al., 2024): the matrices B take steps of `ratio` times the learning rate.
So do all vectors that are trained, DoRA's magnitudes and biases among them; all else is as A.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gradex.adapters.kinds import kind_of
from gradex.errors import GradexError, unknown
from gradex.training.projected import CountsProjections


@dataclass(frozen=True)
class Known:
    """Where the class is, what of it is set otherwise than it comes, and whether it projects."""

    about: str
    module: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    projects: bool = False


# Where a package has decay as a part of the gradient, as Adam had it at first.
DECOUPLED = {"weight_decouple": True}

OPTIMIZERS: dict[str, Known] = {
    "adamw": Known("Adam, decay apart (Loshchilov and Hutter, 2019)", "torch.optim", "AdamW"),
    "sgd": Known("the gradient, with momentum where it is set", "torch.optim", "SGD"),
    "adamp": Known(
        "AdamW without the radial part of steps (Heo et al., 2021)", "pytorch_optimizer", "AdamP",
        projects=True,
    ),
    "sgdp": Known("SGD likewise (Heo et al., 2021)", "pytorch_optimizer", "SGDP", projects=True),
    "lion": Known(
        "the sign of two averages; wants a 3 to 10 times smaller rate (Chen et al., 2023)",
        "pytorch_optimizer", "Lion",
    ),
    "adan": Known("Nesterov moments (Xie et al., 2022)", "pytorch_optimizer", "Adan"),
    "adopt": Known(
        "Adam that converges for any beta2; its first step only looks (Taniguchi et al., 2024)",
        "pytorch_optimizer", "ADOPT", DECOUPLED,
    ),
    "ademamix": Known(
        "AdamW with a second, slow average (Pagliardini et al., 2024)", "pytorch_optimizer",
        "AdEMAMix", DECOUPLED,
    ),
    "came": Known("factored moments, less memory (Luo et al., 2023)", "pytorch_optimizer", "CAME"),
}  # fmt: skip

# Those of transformers that need no further number and no score.
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
)  # fmt: skip
# Said by flags of their own, or how a step is computed and not what it is.
NO_SETTINGS = frozenset(
    "self params lr weight_decay foreach fused capturable differentiable maximize".split()
)
LORAPLUS_GROUPS = ("A", "embedding", "B", "B without decay")  # in the order that peft makes them


@dataclass(frozen=True)
class OptimizerSpec:
    """`name` is a key of OPTIMIZERS, `options` its own settings, `schedule` one of SCHEDULES."""

    name: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "linear"
    loraplus_ratio: float = 1.0


def require_optimizer(spec: OptimizerSpec, *, adapter: str, warmup: int, steps: int) -> None:
    """Refuse what can be told before a model is there."""
    if spec.schedule not in SCHEDULES:
        raise unknown("schedule", spec.schedule, SCHEDULES, "--lr_scheduler_type")
    if warmup and spec.schedule == "constant":
        raise GradexError(
            f"--warmup_steps: found {warmup}, but the schedule constant has no warm-up; say "
            "--lr_scheduler_type constant_with_warmup"
        )
    if warmup >= steps:
        raise GradexError(
            f"--warmup_steps: found {warmup}, expected fewer than the {steps} of --max_steps"
        )
    if spec.loraplus_ratio != 1 and not kind_of(adapter).learns_b:
        raise GradexError(
            f"--loraplus_ratio: found {spec.loraplus_ratio:g}, but {adapter} trains no matrix B, "
            "which alone would take larger steps; say --loraplus_ratio 1 or another --adapter"
        )


def _known(name: str) -> Known:
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS, "--optimizer")
    return OPTIMIZERS[name]


def _class(known: Known) -> type[Optimizer]:
    """Imported here: pytorch_optimizer takes seconds, and adamw does not need it."""
    found = getattr(import_module(known.module), known.name)
    return type(known.name, (CountsProjections, found), {}) if known.projects else found


def parse_optimizer_args(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The optimizer's own settings, given as KEY=VALUE; a first step is tried with them."""
    known = _known(name)
    if not words:
        return {}
    settings = _settings(_class(known))
    options = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in settings:
            raise unknown(f"setting of {name}", key, settings, "--optimizer_args")
        options[key] = _parsed(word, text, settings[key].default)
    _try_step(name, options)
    return options


def _settings(found: type[Optimizer]) -> dict[str, Parameter]:
    """What can be set by a word: truth values, numbers, and tuples of numbers."""
    return {
        name: parameter
        for name, parameter in signature(found.__init__).parameters.items()
        if name not in NO_SETTINGS
        and (
            isinstance(parameter.default, bool | int | float | tuple)
            or "float" in str(parameter.annotation)
        )
    }


def _parsed(word: str, text: str, default: Any) -> bool | float | tuple[float, ...]:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return _numbers(text, len(default))
        return _numbers(text, 1)[0]
    except (KeyError, ValueError):
        expected = "true or false" if isinstance(default, bool) else "a number"
        if isinstance(default, tuple):
            expected = f"{len(default)} numbers, as {','.join(map(str, default))}"
        raise GradexError(f"--optimizer_args {word}: expected {expected}") from None


def _numbers(text: str, count: int) -> tuple[float, ...]:
    numbers = tuple(map(float, text.split(",")))
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def _try_step(name: str, options: Mapping[str, Any]) -> None:
    """Whatever a class says of its settings, it says of a small matrix already."""
    weight = nn.Parameter(torch.eye(2))
    weight.grad = torch.ones(2, 2)
    try:
        _class(_known(name))([weight], lr=0.1, **_known(name).settings | options).step()
    except Exception as error:
        raise GradexError(f"--optimizer_args: {name} cannot step with them: {error}") from None


def make_optimizer(
    spec: OptimizerSpec, model: nn.Module, *, learning_rate: float, weight_decay: float
) -> Optimizer:
    """The optimizer of all that is trained in the model."""
    known = _known(spec.name)
    options = {**known.settings, **spec.options}
    if spec.loraplus_ratio != 1:
        return _loraplus(
            model, _class(known), options, ratio=spec.loraplus_ratio, learning_rate=learning_rate,
            weight_decay=weight_decay,
        )  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    return _class(known)(trained, lr=learning_rate, weight_decay=weight_decay, **options)


def _loraplus(
    model: nn.Module,
    found: type[Optimizer],
    options: Mapping[str, Any],
    *,
    ratio: float,
    learning_rate: float,
    weight_decay: float,
) -> Optimizer:
    from peft.optimizers import create_loraplus_optimizer

    if not any("lora_B" in name for name, p in model.named_parameters() if p.requires_grad):
        raise GradexError(
            f"--loraplus_ratio: found {ratio:g}, but this adapter trains no matrix B, which alone "
            "would take larger steps; say --loraplus_ratio 1"
        )
    # Of its own accord, peft has no decay, and all but halts adapters of embeddings at 1e-6.
    optimizer = create_loraplus_optimizer(
        model, found, lr=learning_rate, loraplus_lr_ratio=ratio,
        loraplus_lr_embedding=learning_rate, loraplus_weight_decay=weight_decay, **options,
    )  # fmt: skip
    for name, group in zip(LORAPLUS_GROUPS, optimizer.param_groups, strict=True):
        group["name"] = name
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def make_schedule(name: str, optimizer: Optimizer, *, warmup: int, steps: int) -> LambdaLR:
    """As transformers has it: with a warm-up, the very first step is one of size zero."""
    from transformers import get_scheduler

    try:
        return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except ValueError as error:
        raise GradexError(f"--lr_scheduler_type {name}: {error}") from None
