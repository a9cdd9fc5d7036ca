"""The flow estimate: the regression of `linear` without its ridge, stopped early as training is.

    z = -f(A_S / n) b_S / n,     f(w) = (1 - exp(-t w)) / w

in the words of `regression`, with w and 1 / t in units of tau: where gradient flow on the squared
error stands at time t. Directions that the subset's gradients agree on are learned first.

Method: Ali, Kolter & Tibshirani, "A Continuous-Time View of Early Stopping for Least Squares
Regression", AISTATS 2019 (arXiv 1810.10082), lemma 1, on the gradients of Li et al. (2024).
"""

from gradex.estimators.regression import Regression
from gradex.estimators.solves import gradient_flow
from gradex.gradients.row_views import RowNorm


class Flow(Regression):
    """See the module. Fitted values end in an underscore."""

    def __init__(
        self,
        *,
        t: float = 300.0,
        source_norm: RowNorm = "unit",
        target_norm: RowNorm = "soft",
        compress: int | None = None,
    ):
        super().__init__(
            gradient_flow(t), source_norm=source_norm, target_norm=target_norm, compress=compress
        )
        self.t = t
