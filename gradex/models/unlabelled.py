"""What can be asked of predictions where no answer is known: that they are sure, and not all alike.

The surrogate loss of an unlabelled target in ParetoDA (Lv et al., NeurIPS 2021) is minus the mutual
information of a batch's rows and their predictions,

    H(mean over rows of p) - mean over rows of H(p),

which grows as each prediction p becomes sure while their mean stays spread over the options. It
does not say which option is right for which row: that is for the sources to teach. ParetoDA first
refines each p by a discriminator of domains, which is trained beside the model; here p is taken as
the model has it.
"""

import math

from jaxtyping import Float
from torch import Tensor


def mutual_information(logits: Float[Tensor, "sample option"]) -> Float[Tensor, ""]:
    """In nats and in float32: 0 where all rows are alike, at most the logarithm of the number of
    rows or of options, whichever is smaller."""
    log_p = logits.float().log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    return _entropy(log_mean) - _entropy(log_p).mean()


def _entropy(log_p: Float[Tensor, "*sample option"]) -> Float[Tensor, "*sample"]:
    return -(log_p.exp() * log_p).sum(-1)
