"""The estimate as the code of 2024 made it, to compare with.

Each row of the subset gets a label drawn as 1 with probability 0.7, rows with label 0 change sign,
and scikit-learn's liblinear solver fits labels to rows, without offsets. Of the fit only the
direction is kept: the displacement of the weights has 0.4 times the norm of the adapter's weights.
What differs here: margins are exact, all rows of a subset are fitted, and the displaced loss is the
first-order one of `margins`, not that of a forward pass.

Method: Li et al., "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", Findings of EMNLP 2024 (arXiv 2409.19458), and the code that came with it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from gradex.adapters.folder import trained_lora
from gradex.errors import GradexError
from gradex.estimators.margins import MarginFit, Rows
from gradex.gradients.meta_training import meta_training_of
from gradex.gradients.store import GradientStore

# C and the share of ones are the same in all scripts of 2024, the scale is that of its forward
# selection.
C = 1e-4
ONES = 0.7
SCALE = 0.4


class Published(MarginFit):
    """See the module; `seed` draws the labels."""

    def __init__(self, *, seed: int = 0):
        super().__init__("margin")
        self.seed = seed

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Published":
        """As `margins` has it, and how far every subset is displaced."""
        self.length_ = _length(store)
        return super().fit(store, sources=sources, targets=targets, split=split)

    def displacement_of(
        self, rows: Rows, sources: Int[np.ndarray, " chosen"]
    ) -> Float[np.ndarray, " dim"]:
        # Seeded by the subset: an estimate does not depend on which others are asked for.
        rng = np.random.default_rng([self.seed, *sources])
        return self.length_ * direction(rows.gradients, rng=rng)


def direction(
    gradients: Float[np.ndarray, "row dim"], *, rng: np.random.Generator
) -> Float[np.ndarray, " dim"]:
    """The unit vector along the coefficients of the published fit."""
    from sklearn.linear_model import LogisticRegression

    labels = rng.random(len(gradients)) < ONES
    if labels.all() or not labels.any():
        raise GradexError(
            f"--as_published: all {len(labels)} rows of a subset drew the same label, which that "
            "recipe has no fit for; estimate larger subsets, or leave the flag out"
        )
    model = LogisticRegression(C=C, solver="liblinear", random_state=0)
    model.fit(np.where(labels[:, None], gradients, -gradients), labels)
    return model.coef_[0] / np.linalg.norm(model.coef_[0])


def _length(store: GradientStore) -> float:
    """The norm of z whose displacement of the weights is as long as the published one.

    A projection of D parameters to `dim` numbers that keeps norms in mean stretches what is lifted
    by sqrt(D / dim).
    """
    if store.space["precondition"] != "none":
        raise GradexError(
            f"{store.path}: its gradients are preconditioned, which --as_published is not made "
            "for; make a store with `--precondition none`"
        )
    adapter = meta_training_of(store, otherwise="leave --as_published out").adapter
    weights = _adapter_weights(adapter)
    return SCALE * float(np.linalg.norm(weights)) * np.sqrt(store.dim / len(weights))


def _adapter_weights(folder: Path) -> Float[np.ndarray, " param"]:
    """All that is trained of a LoRA, which is what the recipe is for."""
    tensors = trained_lora(folder)
    if tensors is None:
        raise GradexError(
            f"{folder}: --as_published is made for the matrices of LoRA, and this adapter has "
            "others; leave the flag out"
        )
    flat = [tensors[name].double().numpy().ravel() for name in sorted(tensors)]
    return np.concatenate(flat)
