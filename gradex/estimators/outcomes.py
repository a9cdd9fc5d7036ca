"""Losses and metrics on a scale without bounds, on which a low number is a good outcome.

loss L      log(e^L - 1): the logarithm where L is small, L itself where it is large; minus the
            margin of a token that has this loss
share p     -log(p / (1 - p)), of a metric between 0 and 1 such as exact match
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

Transform = Callable[[np.ndarray], np.ndarray]
LEAST_LOSS = 1e-12
LEAST_SHARE = 0.0025  # of no answer right, or all: as if half a row of 200 were otherwise


@dataclass(frozen=True)
class Unbounded:
    """To the scale and back."""

    of: Transform
    back: Transform


def _margin(loss: np.ndarray) -> np.ndarray:
    loss = np.maximum(loss, LEAST_LOSS)
    return loss + np.log(-np.expm1(-loss))


LOSS = Unbounded(of=_margin, back=lambda y: np.logaddexp(0, y))
SHARE = Unbounded(
    of=lambda p: -logit(np.clip(p, LEAST_SHARE, 1 - LEAST_SHARE)), back=lambda y: expit(-y)
)


def unbounded(metric: str) -> Unbounded:
    return LOSS if metric == "loss" else SHARE
