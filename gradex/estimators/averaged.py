"""One estimate from several points of the meta-training: where one is off, the others are not.

Gradients change along the way from the base model to the meta adapter, and a true fine-tune passes
through all of it. At every point that the store holds (see `GradientStore.points`) subsets are
estimated and standardised over the same random half-size subsets; the average of the standardised
values is put back on the scale of the store's own point. With one point nothing is changed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from gradex.data.subsets import Subset
from gradex.estimators.protocol import Displacing, Estimates, named_or_all, uncalibrated
from gradex.estimators.reference import reference_subsets, scale_of
from gradex.gradients.store import GradientStore


class Averaged:
    """See the module. `make` gives an unfitted estimator."""

    def __init__(self, make: Callable[[], Displacing]):
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
        sources, self.targets_ = named_or_all(store, sources, targets)
        stores = [store, *store.points()]
        self.fitted_ = [
            self.make().fit(one, sources=sources, targets=self.targets_, split=split)
            for one in stores
        ]
        population = reference_subsets(sources)
        self.scales_ = [scale_of(one.predict(population).value) for one in self.fitted_]
        return self

    def displacements(
        self, member: Float[np.ndarray, "subset source"]
    ) -> Float[np.ndarray, "subset dim"]:
        """z at the store's own point, for each row of a membership matrix."""
        return self.fitted_[0].displacements(member)

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        if len(self.fitted_) == 1:
            return self.fitted_[0].predict(subsets)
        standard = [
            scale.standard(one.predict(subsets).value)
            for one, scale in zip(self.fitted_, self.scales_, strict=True)
        ]
        return uncalibrated(self.targets_, self.scales_[0].back(np.mean(standard, axis=0)))
