"""How far from the meta adapter the estimates hold: first-order changes beside real ones.

    python -m gradex.trust
    python -m gradex.trust --store gradients/NAME --target sort --num_subsets 16

The adapter is moved to where random subsets lead, as far as --distances say, and the targets'
select rows are measured there. Finished subsets are kept, so that an interrupted run goes on.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradex import runs
from gradex.arguments import EstimatorArguments, TrustArguments
from gradex.config import main, option, require_not_negative, require_positive
from gradex.data.subsets import MIXED_SIZES, Subset, format_subset, membership, sample_subsets
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.displaced import Lift, MetaModel, lift_of, load_meta_model
from gradex.estimators.protocol import Displacing
from gradex.estimators.trust import (
    FILE,
    Changes,
    changes_along,
    errors,
    mean_gradients,
    pooled_errors,
    trust_radius,
)
from gradex.gradients.store import GradientStore, open_store
from gradex.progress import progress
from gradex.records import write_json
from gradex.reporting.csv_table import write_csv
from gradex.reporting.trust_figure import first_order_error

SPLIT = "select"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments, EstimatorArguments):
    target: list[str] | None = option(None, "targets to measure; default: all of the store")
    num_subsets: int = option(8, "random subsets, whose directions are gone along")
    subset_seed: int = option(2, "seed of the random subsets")
    distances: list[float] = option(
        [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "how far to go, as shares of the adapter's norm"
    )
    limit: float = option(0.5, "the error that is still trusted, as a share of the real change")
    output_dir: str | None = option(None, "the run's folder; default: runs/trust/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        self.require_no_calibration("trust looks at first-order changes, before any calibration")
        require_positive(self, "num_subsets", "limit")
        require_not_negative(self, "subset_seed")
        if not self.distances or not all(0 < share < math.inf for share in self.distances):
            raise GradexError(f"--distances: found {self.distances}, expected numbers above 0")


def trust(config: Config) -> Path:
    """Returns the run folder: trust.json, trust.csv, trust.png, config.yaml."""
    store = open_store(config.store)
    config = replace(config, store=str(store.path), distances=sorted(set(config.distances)))
    targets = [store.require_target(name) for name in config.target or store.targets]
    subsets = sample_subsets(
        store.sources, config.num_subsets, sizes=MIXED_SIZES, seed=config.subset_seed
    )
    inputs = (store.fingerprint, store.data_hashes())
    with runs.start("trust", config, output_dir=config.output_dir, inputs=inputs) as run:
        walk = _begin(config, store, targets)
        changes = walk.changes(subsets, run.part / "subsets")
        content = _content(walk, changes, limit=config.limit)
        write_json(run.part / FILE, content)
        _write_changes(run.part / "trust.csv", walk, changes, subsets)
        first_order_error(run.part / "trust.png", content)
    for entry in [*content["targets"], content | {"target": "all targets together"}]:
        log.info("%s: %s", entry["target"], _told(entry["radius"]))
    return run.path


@dataclass(frozen=True)
class _Walk:
    """Goes along the subsets' directions, a file each; one that lies there is not gone again."""

    store: GradientStore
    estimator: Displacing
    lift: Lift
    model: MetaModel
    distances: list[float]

    @property
    def targets(self) -> list[str]:
        return list(self.model.examples)

    def changes(self, subsets: Sequence[Subset], folder: Path) -> list[Changes]:
        """Changes of the targets' losses in the direction of each subset."""
        folder.mkdir(exist_ok=True)
        displacements = self.estimator.displacements(membership(subsets, self.store.sources))
        slopes = displacements @ mean_gradients(self.store, self.targets, split=SPLIT).T
        at_rest = self.model.losses(torch.zeros(self.model.size))
        norm = self.model.norm
        distances = [share * norm for share in self.distances]
        found = []
        with progress("directions", len(subsets), unit="subset") as bar:
            for index, (z, slope) in enumerate(zip(displacements, slopes, strict=True)):
                file = folder / f"{index:04d}.json"
                if not file.exists():
                    w = self.lift(z, size=self.model.size)
                    changes_along(
                        w, slope, self.model.losses, at_rest=at_rest, distances=distances
                    ).write(file)
                found.append(Changes.read(file))
                bar.update()
        return found


def _begin(config: Config, store: GradientStore, targets: Sequence[str]) -> _Walk:
    estimator, lift = make_estimator(config), lift_of(store)
    if not isinstance(estimator, Displacing):
        raise GradexError(
            f"--estimator {config.estimator}: leads to no place in the weights whose distance "
            "could be measured; linear does"
        )
    estimator.fit(store, targets=targets, split=SPLIT)
    said = {"trust_remote_code": config.trust_remote_code, "allow_pickle": config.allow_pickle}
    model = load_meta_model(store, targets, split=SPLIT, **said)
    return _Walk(store, estimator, lift, model, config.distances)


def _content(walk: _Walk, changes: Sequence[Changes], *, limit: float) -> dict[str, Any]:
    distances, pooled = walk.distances, pooled_errors(changes)
    table = [
        {
            "target": target,
            "radius": trust_radius(distances, column, limit=limit),
            "errors": _plain(column),
        }
        for target, column in zip(walk.targets, errors(changes).T, strict=True)
    ]
    return {
        "store": str(walk.store.path),
        "fingerprint": walk.store.fingerprint,
        "limit": limit,
        "norm": walk.model.norm,
        "gain": walk.lift.gain(walk.model.size),
        "n": len(changes),
        "distances": distances,
        "radius": trust_radius(distances, pooled, limit=limit),
        "errors": _plain(pooled),
        "targets": table,
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """JSON has no infinity."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _told(radius: float) -> str:
    if radius == 0:
        return "no distance at which first-order changes are within the limit"
    return f"first-order changes hold up to {radius:.2g} of the meta adapter's norm"


def _write_changes(
    file: Path, walk: _Walk, changes: Sequence[Changes], subsets: Sequence[Subset]
) -> None:
    words = [format_subset(subset, walk.store.sources) for subset in subsets]
    lines = (
        [words[i], target, distance, found.predicted[row, column], found.real[row, column]]
        for i, found in enumerate(changes)
        for row, distance in enumerate(walk.distances)
        for column, target in enumerate(walk.targets)
    )
    write_csv(file, ["subset", "target", "distance", "first_order", "real"], lines)


if __name__ == "__main__":
    raise SystemExit(main(trust, Config))
