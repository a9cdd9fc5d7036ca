"""One estimate from several points of the meta-training: where one is off, the others are not.

Gradients change along the way from the base model to the meta adapter, and a true fine-tune passes
through all of it. At every point that the store holds (see `GradientStore.points`) subsets are
estimated and standardised over the same random half-size subsets; the average of the standardised
values is put back on the scale of the store's own point. With one point nothing is changed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset, sample_subsets
from gradex.estimators.protocol import Estimates, Estimator, uncalibrated
from gradex.gradients.store import GradientStore

REFERENCE_SUBSETS = 256


class Averaged:
    """See the module. `make` gives an unfitted estimator."""

    def __init__(self, make: Callable[[], Estimator]):
        self.make = make

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Averaged":
        """One estimator at each point; the store's own point is the first."""
        stores = [store, *store.points()]
        self.fitted_ = [
            self.make().fit(one, sources=sources, targets=targets, split=split) for one in stores
        ]
        self.targets_ = list(targets or store.targets)
        self.scales_ = [_scale(one, sources or store.sources) for one in self.fitted_]
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        if len(self.fitted_) == 1:
            return self.fitted_[0].predict(subsets)
        standard = [
            (one.predict(subsets).value - middle) / spread
            for one, (middle, spread) in zip(self.fitted_, self.scales_, strict=True)
        ]
        middle, spread = self.scales_[0]
        return uncalibrated(self.targets_, middle + spread * np.mean(standard, axis=0))


def reference_subsets(sources: Sequence[str]) -> list[Subset]:
    """Random half-size subsets, the same for the same sources: a population to measure scales on."""
    return sample_subsets(sorted(sources), REFERENCE_SUBSETS, sizes=[0.5], seed=0)


def _scale(
    fitted: Estimator, sources: Sequence[str]
) -> tuple[Float[np.ndarray, " target"], Float[np.ndarray, " target"]]:
    """Middle and spread of the estimates of the reference subsets."""
    value = fitted.predict(reference_subsets(sources)).value
    spread = value.std(0)
    return value.mean(0), np.where(spread > 0, spread, 1.0)
