"""A weight without its smallest components, small in one of three senses.

    W M = U S V^T,   W' = W - U_d U_d^T W,   ||(W - W') M||_F^2 = sum of S_d^2, the least there is

M is the damped covariance of the layer's inputs (context: CorDA, Yang et al., 2024), the square
root of their mean magnitudes on a diagonal (activation: ASVD, Yuan et al., 2023), or the identity
(plain). In all three W' projects the layer's output: what is discarded of X is U_d U_d^T W X, and

    ||(W - W') X||_F^2 = sum over discarded u of u^T W (X X^T) W^T u,

so that the output errors for every number of discarded components come from one decomposition.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradex.adapters.corda import damped, output_components
from gradex.adapters.covariance import Context

AS_SEEN_AT_LEAST = 1e-6  # what a channel that is always zero counts for
Weight = Float[Tensor, "out in"]


def _by_context(weight: Weight, context: Context) -> Weight:
    return weight @ damped(context.covariance).to(weight)


def _by_activation(weight: Weight, context: Context) -> Weight:
    return weight * (context.magnitude.to(weight).sqrt() + AS_SEEN_AT_LEAST)


def _plain(weight: Weight, context: Context) -> Weight:
    return weight


METRICS: dict[str, Callable[[Weight, Context], Weight]] = {
    "context": _by_context,
    "activation": _by_activation,
    "plain": _plain,
}


class Smallest(NamedTuple):
    """Some smallest components of a weight, the smallest last: each one's direction in the output,
    and its share of the layer's squared output."""

    directions: Float[Tensor, "out component"]
    shares: Float[Tensor, " component"]

    def error(self, discard: int) -> float:
        """The relative size of the change in the output without the last `discard`."""
        return float(self.shares[len(self.shares) - discard :].sum().sqrt())


def smallest(
    weight: Weight,
    context: Context,
    *,
    metric: str,
    count: int,
    measured: Float[Tensor, "in in"],
) -> Smallest:
    """The `count` smallest components; `measured`: the covariance of the inputs whose outputs are
    compared. In float32, or in float64 where the weight is."""
    precise = weight if weight.dtype == torch.float64 else weight.float()
    u, _ = output_components(METRICS[metric](precise.double(), context))
    u = u[:, u.shape[1] - count :].to(precise)
    covariance = measured.to(precise)
    parts, whole = u.T @ precise, ((precise @ covariance) * precise).sum()
    shares = ((parts @ covariance) * parts).sum(1) / whole
    return Smallest(u.contiguous(), shares.clamp(min=0))


def without(weight: Weight, found: Smallest, *, discard: int) -> Weight:
    """The weight without the last `discard` of the found components; of none, the weight itself."""
    if discard == 0:
        return weight
    u = found.directions[:, found.directions.shape[1] - discard :].to(weight.device)
    precise = weight.to(u.dtype)
    return (precise - u @ (u.T @ precise)).to(weight.dtype)
