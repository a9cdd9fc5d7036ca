"""The real loss at the displaced weights: one forward pass a subset, for checks of small steps.

Another estimator fits a displacement z of the sketches and takes a target's loss to be linear in
it, L_t + G_t . z. Here the adapter itself is moved to theta* + C P z (see displaced), and the mean
loss of the target's rows is measured there. Small steps agree; where they part, the linear range
has ended. Fine-tuning moves weights far out of that range, so that this is no better an estimate.

The length of z is that of the fit: with source rows at unit norm it is no length of a fine-tune.
`length` moves every subset equally far, as a distance in the weights.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gradex.data.subsets import Subset
from gradex.estimators.displaced import MetaModel, lift_of, load_meta_model
from gradex.estimators.protocol import Displacing, Estimates, members, named_or_all, uncalibrated
from gradex.gradients.store import GradientStore
from gradex.progress import progress


class Shift:
    """See the module. Fitted values end in an underscore."""

    def __init__(
        self,
        inner: Displacing,
        *,
        length: float | None = None,
        load: Callable[..., MetaModel] = load_meta_model,
    ):
        self.inner, self.length, self.load = inner, length, load

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Shift":
        """Fit the inner estimator, and load the model and the targets' rows."""
        self.sources_, self.targets_ = named_or_all(store, sources, targets)
        self.lift_ = lift_of(store)
        self.inner.fit(store, sources=self.sources_, targets=self.targets_, split=split)
        self.model_ = self.load(store, self.targets_, split=split)
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        displacements = self.inner.displacements(members(subsets, self.sources_))
        value = np.empty((len(subsets), len(self.targets_)))
        with progress("forward passes", len(subsets), unit="subset") as bar:
            for row, z in enumerate(displacements):
                value[row] = self.model_.losses(self._lifted(z))
                bar.update()
        return uncalibrated(self.targets_, value)

    def _lifted(self, z: Float[np.ndarray, " dim"]) -> Float[Tensor, " param"]:
        lifted = self.lift_(z, size=self.model_.size)
        if self.length is None:
            return lifted
        norm = lifted.norm()
        return lifted * (self.length / norm) if norm > 0 else lifted
