"""The contract of every estimator, and the table of numbers it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset, membership
from gradex.errors import GradexError, unknown
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


@runtime_checkable
class Displacing(Estimator, Protocol):
    """An estimator that says where in the space of the sketches a subset leads."""

    def displacements(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Float[np.ndarray, "subset dim"]: ...


def named_or_all(
    store: GradientStore, sources: Sequence[str] | None, targets: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The sources and targets that an estimator is fitted to: those of the store, if none are
    named."""
    found = []
    for kind, named, known in (
        ("source", sources, store.sources),
        ("target", targets, store.targets),
    ):
        if not known:
            raise GradexError(f"{store.path}: holds no {kind}; run project again")
        for name in sorted(set(named or ()).difference(known)):
            raise unknown(kind, name, known, str(store.path))
        found.append(list(named or known))
    return found[0], found[1]


def members(
    subsets: Sequence[Subset], sources: Sequence[str]
) -> Float[np.ndarray, "subset source"]:
    """The membership matrix; a subset that is empty or names an unknown source is refused."""
    for name in sorted(frozenset().union(*subsets) - set(sources)):
        raise unknown("source", name, sources)
    if not all(subsets):
        raise GradexError("found an empty subset; an estimate needs at least one source")
    return membership(subsets, sources)


def uncalibrated(targets: Sequence[str], value: Float[np.ndarray, "subset target"]) -> Estimates:
    """Values that rank subsets, without an interval."""
    nothing = np.full_like(value, np.nan)
    return Estimates(list(targets), value, nothing, nothing, calibrated=False)
