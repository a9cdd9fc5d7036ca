"""A base model with a new adapter of a spec."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gradex.adapters import any_peft
from gradex.adapters.beginning import Beginning
from gradex.adapters.blocks import target_shapes
from gradex.adapters.kinds import Kind, kind_of, require_sound
from gradex.adapters.spec import ALL_LINEAR, AdapterSpec
from gradex.adapters.targets import require_takeable, require_targets
from gradex.data.tokens import Batch
from gradex.errors import GradexError, first_line
from gradex.models.load import Base


def attach(
    base: Base, spec: AdapterSpec, *, seed: int, steps: int = 0, batches: Sequence[Batch] = ()
) -> nn.Module:
    """The base model with a new adapter, drawn from `seed`; what is not the adapter's is frozen.

    `steps` is how long it is going to be trained, `batches` what a kind that reads rows begins
    from.
    """
    require_sound(spec, steps=steps)
    kind, model = kind_of(spec.kind), base.model
    transposed = _has_conv1d(model)
    if transposed and not kind.conv1d:
        raise GradexError(
            f"--adapter {spec.kind}: does not work on the Conv1D layers of this model; it works on "
            "models whose layers are Linear"
        )
    if kind.reads_rows and not batches:
        raise GradexError(f"--adapter {spec.kind}: begins from calibration rows; none are given")
    beginning = Beginning(
        base.family, model.config.model_type, transposed, seed=seed, steps=steps, batches=batches
    )
    if kind.fits is not None:
        kind.fits(target_shapes(model, spec), spec)
    config = kind.config(spec, beginning)
    if config is None:
        return model.requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _begun(_wrapped(model, spec, config), kind, spec, beginning)


def _begun(model: nn.Module, kind: Kind, spec: AdapterSpec, beginning: Beginning) -> nn.Module:
    if kind.from_base:
        require_takeable(model, spec.kind)
    if kind.start is not None:
        kind.start(model, spec, beginning)
    return model


def _wrapped(model: nn.Module, spec: AdapterSpec, config: Any) -> nn.Module:
    from peft import get_peft_model

    if spec.targets != (ALL_LINEAR,):
        require_targets(model, spec.targets)
    require_targets(model, any_peft.named_targets(spec.options), where=any_peft.FLAG)
    try:
        model = get_peft_model(model, config)
    except Exception as error:  # a setting that cannot be makes peft raise what it stumbles over
        told = first_line(error)
        raise GradexError(f"--adapter {spec.kind}: not for this model ({told})") from None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise GradexError(f"--adapter {spec.kind}: finds nothing to train in this model")
    return model


def _has_conv1d(model: nn.Module) -> bool:
    """GPT-2 and its kin keep their weights transposed, in Conv1D layers."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())
