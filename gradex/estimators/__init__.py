"""What would happen: predicted target losses of fine-tuning on any subset, from the store."""

from gradex.errors import unknown
from gradex.estimators.linear import Linear
from gradex.estimators.protocol import Estimator

ESTIMATORS = {"linear": Linear}


def make_estimator(name: str, *, lam: float) -> Estimator:
    if name not in ESTIMATORS:
        raise unknown("estimator", name, ESTIMATORS, "--estimator")
    return ESTIMATORS[name](lam=lam)
