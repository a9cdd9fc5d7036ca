"""Which sources help and which hurt each target, and which get in one another's way: two tables.

    python -m gradex.transfer
    python -m gradex.transfer --target sort --num_contexts 200

An effect is the mean change of the estimate when a source is added to random subsets; its interval
is over these subsets and knows nothing of the estimator's own error. Below zero helps. An
interaction below zero says that two sources help more together than apart.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex import runs
from gradex.arguments import EstimatorArguments
from gradex.config import (
    main,
    option,
    require_fraction,
    require_not_negative,
    require_positive,
)
from gradex.data.subsets import Subset, encode_name
from gradex.estimators import estimator_of, with_calibration
from gradex.estimators.protocol import Estimator
from gradex.gradients.store import open_store
from gradex.progress import progress
from gradex.records import write_json
from gradex.reporting.csv_table import write_csv
from gradex.reporting.heatmaps import affinity_map, effects_map, save
from gradex.selection.scores import TargetScore
from gradex.selection.transfer import (
    Effects,
    draw_contexts,
    effects,
    interactions,
    strongest,
)

MAX_PAIRS = 1000  # all of up to 45 sources
SHOWN = 3  # sources that are named on the screen, on each side of zero
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(EstimatorArguments):
    target: list[str] | None = option(None, "targets to look at; default: all of the store")
    num_contexts: int = option(64, "random subsets that every source is added to")
    context_size: float = option(0.5, "their size as a share of the sources")
    max_pairs: int = option(
        MAX_PAIRS, "pairs of sources in the affinity table: where there are more, it is made of "
        "the sources with the strongest effects"
    )  # fmt: skip
    seed: int = option(0, "seed of the random subsets, and of the intervals")
    output_dir: str | None = option(None, "the run's folder; default: runs/transfer/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        require_positive(self, "num_contexts", "max_pairs")
        require_not_negative(self, "seed")
        require_fraction(self, "context_size")


@dataclass(frozen=True)
class Affinity:
    """The interactions among some of the sources, and the names of those left out."""

    sources: list[str]
    left_out: list[str]
    matrices: Float[np.ndarray, "target source source"]


def transfer(config: Config) -> Path:
    """Returns the run folder: transfer.csv, affinity.csv (a line a pair), transfer.json, maps."""
    store = open_store(config.store)
    resolved, calibration = with_calibration(replace(config, store=str(store.path)), store)
    with runs.start("transfer", resolved, output_dir=config.output_dir) as run:
        contexts = draw_contexts(
            store.sources, count=config.num_contexts, size=config.context_size, seed=config.seed
        )
        fitted = estimator_of(resolved, calibration).fit(store, targets=config.target)
        everything = fitted.predict([frozenset(store.sources)])
        targets, unit = everything.targets, "log loss" if everything.calibrated else "uncalibrated"
        score = _score(fitted)
        found = effects(score, store.sources, contexts=contexts, seed=config.seed)
        affinity = _affinity(score, found, contexts, max_pairs=config.max_pairs)
        _write_effects(run.part / "transfer.csv", found, targets)
        _write_affinity(run.part / "affinity.csv", affinity, targets)
        summary = _summary(resolved, found, affinity, contexts, targets) | {"unit": unit}
        write_json(run.part / "transfer.json", summary)
        _draw_maps(run.part, found, affinity, targets, unit=unit)
    _say_what_is_missing(config, contexts, affinity)
    for column, target in enumerate(targets):
        log.info("%s: %s", target, _sentence(found, column))
    log.info("intervals are over %d contexts; the estimator may err beyond them", len(contexts))
    return run.path


def _score(fitted: Estimator) -> TargetScore:
    """Calibrated losses are compared by their logarithms: a source changes them by a factor."""

    def score(subsets: Sequence[Subset]) -> Float[np.ndarray, "subset target"]:
        estimates = fitted.predict(subsets)
        return np.log(estimates.value) if estimates.calibrated else estimates.value

    return score


def _affinity(
    score: TargetScore, found: Effects, contexts: Sequence[Subset], *, max_pairs: int
) -> Affinity:
    kept = strongest(found, max_pairs=max_pairs)
    if len(found.sources) < 3:  # no third source beside which two could be seen
        return Affinity([], found.sources, np.zeros((found.mean.shape[1], 0, 0)))
    left_out = [name for name in found.sources if name not in kept]
    return Affinity(kept, left_out, interactions(score, kept, contexts=contexts))


def _write_effects(path: Path, found: Effects, targets: Sequence[str]) -> None:
    """One line a source and target; an interval that is not there is left empty."""
    numbers = (found.mean, found.low, found.high, found.hurts_share)
    lines = (
        [source, target, *(matrix[row, column] for matrix in numbers)]
        for row, source in enumerate(found.sources)
        for column, target in enumerate(targets)
    )
    write_csv(path, ["source", "target", "effect", "low", "high", "hurts_share"], lines)


def _write_affinity(path: Path, affinity: Affinity, targets: Sequence[str]) -> None:
    """One line a target and pair; a pair without a third source in any context is left empty."""
    lines = (
        [target, affinity.sources[i], affinity.sources[j], affinity.matrices[row, i, j]]
        for row, target in enumerate(targets)
        for i, j in combinations(range(len(affinity.sources)), 2)
    )
    write_csv(path, ["target", "source", "other", "interaction"], lines)


def _summary(
    config: Config,
    found: Effects,
    affinity: Affinity,
    contexts: Sequence[Subset],
    targets: Sequence[str],
) -> dict[str, Any]:
    return {
        "store": config.store,
        "estimator": config.estimator,
        "sources": found.sources,
        "contexts": len(contexts),
        "sources_a_context": len(contexts[0]),
        "affinity": {"sources": affinity.sources, "left_out": affinity.left_out},
        "targets": [
            {
                "target": target,
                "helps": [found.sources[i] for i in _clear(found, column, sign=-1)],
                "hurts": [found.sources[i] for i in _clear(found, column, sign=1)],
            }
            for column, target in enumerate(targets)
        ],
    }


def _clear(found: Effects, column: int, *, sign: int) -> list[int]:
    """Sources whose whole interval lies on one side of zero, the strongest first."""
    effect = sign * found.mean[:, column]
    order = np.argsort(-effect, kind="stable")
    return [int(i) for i in order if effect[i] > 0 and not found.uncertain[i, column]]


def _draw_maps(
    folder: Path, found: Effects, affinity: Affinity, targets: Sequence[str], *, unit: str
) -> None:
    """effects.png, and one picture a target in affinity/."""
    save(effects_map(found, targets, unit=unit), folder / "effects.png")
    if not affinity.sources:
        return
    (folder / "affinity").mkdir(exist_ok=True)
    with progress("affinity maps", len(targets), unit="target") as bar:
        for target, matrix in zip(targets, affinity.matrices, strict=True):
            figure = affinity_map(matrix, affinity.sources, target=target, unit=unit)
            save(figure, folder / "affinity" / f"{encode_name(target)}.png")
            bar.update()


def _say_what_is_missing(config: Config, contexts: Sequence[Subset], affinity: Affinity) -> None:
    if len(contexts) < config.num_contexts:
        log.info(
            "contexts: there are only %d subsets of %d sources", len(contexts), len(contexts[0])
        )
    if not affinity.sources:
        log.info("affinity: two sources have no third beside which they could be seen")
    elif affinity.left_out:
        log.info(
            "affinity: the %d strongest sources, with at most %d pairs (--max_pairs); left out: %s",
            len(affinity.sources), config.max_pairs, ", ".join(affinity.left_out),
        )  # fmt: skip


def _sentence(found: Effects, column: int) -> str:
    helps = _named(found, column, _clear(found, column, sign=-1))
    hurts = _named(found, column, _clear(found, column, sign=1))
    return f"helped by {helps}; hurt by {hurts}"


def _named(found: Effects, column: int, rows: Sequence[int]) -> str:
    """The first few with effect and interval, and how many more there are."""
    shown = [
        "{} {:+.2g} ({:+.2g} to {:+.2g})".format(
            found.sources[i], *(m[i, column] for m in (found.mean, found.low, found.high))
        )
        for i in rows[:SHOWN]
    ]
    more = [f"{len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    return ", ".join([*shown, *more]) or "no source clearly"


if __name__ == "__main__":
    raise SystemExit(main(transfer, Config))
