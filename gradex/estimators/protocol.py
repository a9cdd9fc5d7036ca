"""The contract of every estimator, and the table of numbers it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.gradients.store import GradientStore


@dataclass(frozen=True)
class Estimates:
    """Predicted losses, lower is better.

    Uncalibrated values rank subsets but are no losses, and carry no interval (low and high are
    nan).
    """

    targets: list[str]
    value: Float[np.ndarray, "subset target"]
    low: Float[np.ndarray, "subset target"]
    high: Float[np.ndarray, "subset target"]
    calibrated: bool


@runtime_checkable
class Estimator(Protocol):
    """Fitted once on a store; then any number of subsets."""

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Estimator": ...

    def predict(self, subsets: Sequence[Subset]) -> Estimates: ...
