"""The paper's estimate: ridge-logistic regression of "this row is learned" on its gradients.

To first order, a displacement z of the adapter moves the margin of row i from m_i to m_i + g_i z,
so that its loss is softplus(-(m_i + g_i z)). Fine-tuning on a subset S of n rows is taken to go
where that is least,
    z = argmin  mean_S softplus(-(m_i + g_i z)) + lam tau / 2 |z|^2,
found exactly by Newton's method, and target t is predicted to have the loss
mean_t softplus(-(m_t + g_t z)). As in `linear`, tau = mean |g|^2 is one scale for the whole store:
a common factor of all gradients changes no estimate. There is no intercept and no label but
"learned"; it is the ridge that keeps z finite.

Which margin a row of several label tokens has is a choice.
- objective "margin": the mean of its tokens' margins, as published. A poor summary: tokens beyond
  doubt outweigh the ones still wrong, and softplus of the mean is at most the mean of softplus.
- objective "loss": that of the probability exp(-L) which its mean loss L stands for,
  m = -log(exp(L) - 1) with gradient g = -dL / (1 - exp(-L)). Then softplus(-m) is L, and the fit
  starts from the true losses and their true gradients, rows as they are.

`fit` holds all rows of the sources, 4 bytes a number and twice that while they are joined;
`predict` adds up to 28 bytes a number for the rows of one subset at a time.

`as_published` follows the code of 2024 instead, for comparison. Each row of the subset gets a label
drawn as 1 with probability 0.7, rows with label 0 change sign, and scikit-learn's liblinear solver
fits labels to rows, without offsets. Of the fit only the direction is kept: the displacement of the
weights has 0.4 times the norm of the adapter's weights. What differs here: margins are exact, all
rows of a subset are fitted, and the displaced loss is the first-order one above, not that of a
forward pass.

Method: Li et al., "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", Findings of EMNLP 2024 (arXiv 2409.19458).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit

from gradex import runs
from gradex.adapters.spec import fingerprint
from gradex.data.subsets import Subset
from gradex.errors import GradexError
from gradex.estimators.protocol import Estimates, members, uncalibrated
from gradex.gradients.store import Block, GradientStore
from gradex.models.losses import Objective
from gradex.progress import progress

LEAST_LOSS = np.float32(1e-30)  # a row without any loss has no gradient either
MAX_STEPS = 200  # Newton's; a fit takes about ten
LEAST_DECREASE = 1e-20  # of the objective: where a step promises less, it is the last
ROUNDING = 1e-14  # share of the objective that is lost to rounding
SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo, 1966)

# The code of 2024; C and the share of ones are the same in all its scripts, the scale is that of
# its forward selection.
PUBLISHED_C = 1e-4
PUBLISHED_ONES = 0.7
PUBLISHED_SCALE = 0.4


@dataclass(frozen=True)
class Rows:
    """Margins at the meta adapter, and their gradients."""

    margins: Float[np.ndarray, " row"]
    gradients: Float[np.ndarray, "row dim"]

    def loss(self, z: Float[np.ndarray, " dim"]) -> float:
        """The mean loss after a displacement, to first order in the margins."""
        return float(np.logaddexp(0, -(self.margins + self.gradients @ z)).mean())


class Logistic:
    """See the module. Fitted values end in an underscore; `seed` draws the published labels."""

    def __init__(
        self,
        *,
        lam: float = 1e-6,
        objective: Objective = "margin",
        as_published: bool = False,
        seed: int = 0,
    ):
        self.lam = lam
        self.objective: Objective = objective
        self.as_published = as_published
        self.seed = seed

    def fit(
        self,
        store: GradientStore,
        *,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        split: str = "select",
    ) -> "Logistic":
        """All margins and their gradients, one pass over the store."""
        self.sources_ = list(sources or store.sources)
        self.targets_ = list(targets or store.targets)
        if not self.sources_ or not self.targets_:
            raise GradexError(f"{store.path}: holds no source or no target; run project again")
        self.length_ = _published_length(store) if self.as_published else np.nan
        self.rows_, self.parts_ = _read_sources(store, self.sources_, self.objective)
        self.tau_ = float(np.square(self.rows_.gradients).sum(1, dtype=np.float64).mean())
        if self.tau_ == 0:
            raise GradexError(f"{store.path}: all gradients are zero; nothing can be estimated")
        blocks = [store.target(t, split, objective=self.objective) for t in self.targets_]
        self.target_rows_ = [_in_double(_rows(block, self.objective)) for block in blocks]
        return self

    def predict(self, subsets: Sequence[Subset]) -> Estimates:
        member = members(subsets, self.sources_)
        value = np.empty((len(member), len(self.targets_)))
        with progress("logistic fits", len(member), unit="subset") as bar:
            for index, chosen in enumerate(member):
                z = self.displacement(chosen)
                value[index] = [rows.loss(z) for rows in self.target_rows_]
                bar.update()
        return uncalibrated(self.targets_, value)

    def displacement(self, chosen: Float[np.ndarray, " source"]) -> Float[np.ndarray, " dim"]:
        """z for one row of a membership matrix."""
        sources = np.flatnonzero(chosen)
        place = np.concatenate([np.r_[self.parts_[source]] for source in sources])
        rows = _in_double(Rows(self.rows_.margins[place], self.rows_.gradients[place]))
        if self.as_published:
            # Seeded by the subset: an estimate does not depend on which others are asked for.
            rng = np.random.default_rng([self.seed, *sources])
            return self.length_ * published_direction(rows.gradients, rng=rng)
        return ridge_logistic(rows, lam=self.lam, tau=self.tau_)


def _read_sources(
    store: GradientStore, names: Sequence[str], objective: Objective
) -> tuple[Rows, list[slice]]:
    """The rows of all sources in one piece, and where those of each source are."""
    found: list[Rows] = []
    with progress("margins", len(names), unit="source") as bar:
        for name in names:
            store.require_undamaged("train", name)
            found.append(_rows(store.source(name, objective=objective), objective))
            bar.update()
    ends = np.cumsum([0, *(len(rows.margins) for rows in found)]).tolist()
    margins = np.concatenate([rows.margins for rows in found])
    gradients = np.concatenate([rows.gradients for rows in found])
    return Rows(margins, gradients), [slice(start, end) for start, end in pairwise(ends)]


def _rows(block: Block, objective: Objective) -> Rows:
    if objective == "margin":
        return Rows(block.table["margin"], block.gradients)
    loss = np.maximum(block.table["loss"], LEAST_LOSS)
    miss = -np.expm1(-loss)  # 1 - exp(-L)
    return Rows(-loss - np.log(miss), -block.gradients / miss[:, None])


def _in_double(rows: Rows) -> Rows:
    return Rows(rows.margins.astype(np.float64), rows.gradients.astype(np.float64))


def ridge_logistic(rows: Rows, *, lam: float, tau: float = 1.0) -> Float[np.ndarray, " dim"]:
    """argmin over z of the rows' mean loss + lam tau / 2 |z|^2, by Newton's method.

    Solved in the unit in which tau is 1, so that the constants above mean the same for any store.
    """
    unit = np.sqrt(tau)
    rows = Rows(rows.margins, rows.gradients / unit)
    objective = partial(_objective, rows, lam)
    z = np.zeros(rows.gradients.shape[1])
    try:
        for _ in range(MAX_STEPS):
            step, promised = _newton_step(rows, lam, z)
            if promised <= LEAST_DECREASE:
                return (z + step) / unit
            z = z + _sufficient(objective, z, step, promised) * step
    except LinAlgError:
        pass
    raise GradexError(
        f"--lam: found {lam}, too weak a ridge for a logistic fit of {len(rows.margins)} rows in "
        "double precision; raise it"
    )


def _objective(rows: Rows, lam: float, z: Float[np.ndarray, " dim"]) -> float:
    return rows.loss(z) + lam / 2 * float(z @ z)


def _newton_step(
    rows: Rows, lam: float, z: Float[np.ndarray, " dim"]
) -> tuple[Float[np.ndarray, " dim"], float]:
    """The step to the minimum of the quadratic model, and twice the decrease that it promises."""
    count, g = len(rows.margins), rows.gradients
    miss = expit(-(rows.margins + g @ z))
    slope = lam * z - miss @ g / count
    curvature = g.T @ (g * (miss * (1 - miss) / count)[:, None])
    curvature[np.diag_indices_from(curvature)] += lam
    step = -cho_solve(cho_factor(curvature), slope)
    return step, float(-slope @ step)


def _sufficient(
    objective: Callable[[Float[np.ndarray, " dim"]], float],
    z: Float[np.ndarray, " dim"],
    step: Float[np.ndarray, " dim"],
    promised: float,
) -> float:
    """The longest of 1, 1/2, 1/4, ... steps that brings enough of the decrease it promises."""
    start, length = objective(z), 1.0
    start += ROUNDING * (1 + start)
    while objective(z + length * step) > start - SUFFICIENT * length * promised:
        length /= 2
    return length


def published_direction(
    gradients: Float[np.ndarray, "row dim"], *, rng: np.random.Generator
) -> Float[np.ndarray, " dim"]:
    """The unit vector along the coefficients of the published fit."""
    from sklearn.linear_model import LogisticRegression

    labels = rng.random(len(gradients)) < PUBLISHED_ONES
    if labels.all() or not labels.any():
        raise GradexError(
            f"--as_published: all {len(labels)} rows of a subset drew the same label, which that "
            "recipe has no fit for; estimate larger subsets, or leave the flag out"
        )
    model = LogisticRegression(C=PUBLISHED_C, solver="liblinear", random_state=0)
    model.fit(np.where(labels[:, None], gradients, -gradients), labels)
    return model.coef_[0] / np.linalg.norm(model.coef_[0])


def _published_length(store: GradientStore) -> float:
    """The norm of z whose displacement of the weights is as long as the published one.

    A projection of D parameters to `dim` numbers that keeps norms in mean stretches what is lifted
    by sqrt(D / dim).
    """
    if store.space["precondition"] != "none":
        raise GradexError(
            f"{store.path}: its gradients are preconditioned, which --as_published is not made "
            "for; make a store with `--precondition none`"
        )
    weights = _adapter_weights(_adapter_of(store))
    return PUBLISHED_SCALE * float(np.linalg.norm(weights)) * np.sqrt(store.dim / len(weights))


def _adapter_of(store: GradientStore) -> Path:
    """The meta adapter's folder, which a store knows by content alone."""
    for folder in reversed(runs.finished("meta_train")):
        if fingerprint(folder / "adapter") == store.space.get("adapter"):
            return folder / "adapter"
    raise GradexError(
        f"{store.path}: no run in {runs.RUNS / 'meta_train'} has its adapter, whose norm is the "
        "unit of --as_published's steps; run this where the meta-training is"
    )


def _adapter_weights(folder: Path) -> Float[np.ndarray, " param"]:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    lora = [tensor.ravel() for name, tensor in sorted(tensors.items()) if "lora" in name]
    return np.concatenate(lora).astype(np.float64)
