"""How far from the meta adapter a first-order estimate can be trusted.

At theta* + w a target's mean loss has changed by G_t . w to first order, G_t its mean gradient as
it is (no row weighed down): that is held against the real change. Over directions i at one distance
the error is sum_i |G_t . w_i - change_i| / sum_i |change_i|: 0 where all is linear, 1 where saying
"nothing changes" would be as good. The trust radius is the largest distance up to which no error is
above a limit. Distances are shares of |theta*|, the norm of the trained adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from gradex import runs
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.records import read_json, write_json

FILE = "trust.json"
CHANGES = {"predicted": list, "real": list}
Losses = Callable[[Float[Tensor, " param"]], Float[np.ndarray, " target"]]


@dataclass(frozen=True)
class Changes:
    """How the targets' losses change along one direction: to first order, and really."""

    predicted: Float[np.ndarray, "distance target"]
    real: Float[np.ndarray, "distance target"]

    def write(self, file: Path) -> None:
        write_json(file, {name: getattr(self, name).tolist() for name in CHANGES})

    @classmethod
    def read(cls, file: Path) -> "Changes":
        found = read_json(file, "the changes along a direction", CHANGES)
        return cls(*(np.array(found[name], dtype=float) for name in CHANGES))


def changes_along(
    direction: Float[Tensor, " param"],
    slope: Float[np.ndarray, " target"],
    losses: Losses,
    *,
    at_rest: Float[np.ndarray, " target"],
    distances: Sequence[float],
) -> Changes:
    """Changes at absolute distances along a direction, with `slope` = G_t . direction."""
    norm = float(direction.double().norm())
    if norm == 0:
        raise GradexError("a subset leads nowhere: its rows' gradients are zero; look at its rows")
    steps = [distance / norm for distance in distances]
    real = np.stack([losses(direction * step) - at_rest for step in steps])
    return Changes(np.outer(steps, slope), real)


def mean_gradients(
    store: GradientStore, targets: Sequence[str], *, split: str
) -> Float[np.ndarray, "target dim"]:
    """The gradient of each target's mean loss, sketched."""
    blocks = (store.target(target, split) for target in targets)
    return np.stack([block.gradients.mean(0, dtype=np.float64) for block in blocks])


def errors(changes: Sequence[Changes]) -> Float[np.ndarray, "distance target"]:
    """Each target's error at each distance, over all directions."""
    return _ratio(*_summed(changes))


def pooled_errors(changes: Sequence[Changes]) -> Float[np.ndarray, " distance"]:
    """The error over all directions and targets: those that change most count most."""
    wrong, moved = _summed(changes)
    return _ratio(wrong.sum(1), moved.sum(1))


def _summed(changes: Sequence[Changes]) -> tuple[np.ndarray, np.ndarray]:
    wrong = sum(np.abs(one.predicted - one.real) for one in changes)
    return np.asarray(wrong), np.asarray(sum(np.abs(one.real) for one in changes))


def _ratio(wrong: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Infinite where nothing moved but something was predicted."""
    unmoved = np.where(wrong > 0, np.inf, 0.0)
    return np.divide(wrong, moved, out=unmoved, where=moved != 0)


def trust_radius(
    distances: Sequence[float], error: Float[np.ndarray, " distance"], *, limit: float
) -> float:
    """The last of the distances up to which every error is within the limit; 0 where none is."""
    radius = 0.0
    for distance, found in sorted(zip(distances, error.tolist(), strict=True)):
        if not found <= limit:
            break
        radius = distance
    return radius


@dataclass(frozen=True)
class Trust:
    """What a run of trust found: enough to say whether a displacement lies within the radius."""

    folder: Path
    radius: float  # a share of |theta*|
    gain: float  # the length in the weights of a displacement of the sketches of length 1
    norm: float  # |theta*|

    @classmethod
    def read(cls, folder: Path) -> "Trust":
        shape = {"radius": float, "gain": float, "norm": float}
        found = read_json(folder / FILE, "what a run of trust measured", shape)
        return cls(folder, *(found[key] for key in shape))

    def distances(
        self, displacements: Float[np.ndarray, "subset dim"]
    ) -> Float[np.ndarray, " subset"]:
        """How far the adapter is moved by displacements of the sketches, as shares of |theta*|."""
        return np.linalg.norm(displacements, axis=1) * self.gain / self.norm


def find_trust(store: GradientStore) -> Trust | None:
    """The newest measurement in this store's space, where there is one."""
    for folder in reversed(runs.finished("trust")):
        content = read_json(folder / FILE, "what a run of trust measured", {"fingerprint": str})
        if content["fingerprint"] == store.fingerprint:
            return Trust.read(folder)
    return None


def outside(radius: float, distances: Float[np.ndarray, " subset"]) -> Bool[np.ndarray, " subset"]:
    """Which displacements lie farther out than the estimate was checked."""
    return distances > radius
