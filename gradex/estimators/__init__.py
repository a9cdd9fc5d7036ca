"""What would happen: predicted target losses of fine-tuning on any subset, from the store."""

from gradex.estimators.from_flags import (
    STRENGTHS,
    estimator_of,
    make_calibrated,
    require_to_calibrate,
    with_calibration,
)
from gradex.estimators.registry import BASELINES, ESTIMATORS, make_estimator

__all__ = [
    "BASELINES",
    "ESTIMATORS",
    "STRENGTHS",
    "estimator_of",
    "make_calibrated",
    "make_estimator",
    "require_to_calibrate",
    "with_calibration",
]
