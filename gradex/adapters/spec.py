"""Which adapter: a small value that is attached to a base model, trained, and carried home."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterSpec:
    """`kind` is a key of `kinds.KINDS`, and `options` are those that this kind alone has.

    Of LoRA (Hu et al., 2021) and its kin, `rank` and `alpha` make W + (alpha / rank) B A on every
    layer named in `targets`. Kinds without a rank, a scale or targets do not look at these.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    kind: str = "lora"
    options: Mapping[str, Any] = field(default_factory=dict)
