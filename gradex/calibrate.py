"""Fine-tune on a few chosen subsets for real, so that estimates become losses with intervals.

    python -m gradex.calibrate --anchors 8
    python -m gradex.calibrate --anchors 16 --start meta

The later stages find the newest calibration of their store by themselves. Anchors are chosen for
what they teach about all targets at once; each is trained for the same number of optimizer steps,
and finished ones are kept when the command is interrupted. Their select rows are read.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from gradex import runs
from gradex.arguments import (
    AnchorArguments,
    EstimatorArguments,
    TrustArguments,
    combined,
    inheriting,
)
from gradex.config import main, option
from gradex.gradients.store import open_store
from gradex.reporting.quantities import number
from gradex.train_arguments import TrialArguments
from gradex.training.anchors import calibrate_on, pick_anchors
from gradex.training.recipe import require_effect
from gradex.training.trials import make_trials

START = {"base": "base model", "meta": "meta adapter"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrialArguments, TrustArguments, AnchorArguments, EstimatorArguments):
    anchors: int = option(8, "true fine-tunes to calibrate on")
    output_dir: str | None = option(None, "the run's folder; default: runs/calibrate/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        AnchorArguments.__post_init__(self)
        TrialArguments.__post_init__(self)
        self.require_no_calibration("calibrate makes a new one")


def calibrate(config: Config) -> Path:
    """Returns the run folder: calibration.json, runs.json, config.yaml."""
    store = open_store(config.store)
    recorded = store.recorded_settings()
    config = replace(config, store=str(store.path), calibration="none")
    require_effect(config, recorded)
    config = inheriting(config, recorded)
    targets = [store.require_target(name) for name in config.target or store.targets]
    trials = make_trials(combined(recorded, config), store, targets, start=config.start)
    inputs = (store.fingerprint, store.data_hashes())
    with runs.start("calibrate", config, output_dir=config.output_dir, inputs=inputs) as run:
        anchors = pick_anchors(config, config, store, targets, count=config.anchors)
        summary = calibrate_on(anchors, trials, config, store, folder=run.part).summary()
    log.info(
        "calibrated on %d true fine-tunes from the %s, with %s",
        config.anchors, START[config.start], summary["chosen"],
    )  # fmt: skip
    for target, share in summary["left_out_r2"].items():
        log.info("%s: each anchor told from the others, R^2 %s", target, number(share, 2))
    return run.path


if __name__ == "__main__":
    raise SystemExit(main(calibrate, Config))
