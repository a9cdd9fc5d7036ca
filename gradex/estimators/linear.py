"""The linear estimate: ridge regression of "every loss falls by one" on the subset's gradients.

    z = -(A_S / n + lam tau I)^-1 b_S / n

in the words of `regression`, which holds all but this formula; lam is in units of tau.

Method: Li et al., "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", Findings of EMNLP 2024 (arXiv 2409.19458), here in its least-squares form.
"""

from gradex.estimators.regression import Regression
from gradex.estimators.solves import ridge
from gradex.gradients.row_views import RowNorm


class Linear(Regression):
    """See the module. Fitted values end in an underscore."""

    def __init__(
        self,
        *,
        lam: float = 0.003,
        source_norm: RowNorm = "unit",
        target_norm: RowNorm = "soft",
        compress: int | None = None,
    ):
        super().__init__(
            ridge(lam), source_norm=source_norm, target_norm=target_norm, compress=compress
        )
        self.lam = lam
