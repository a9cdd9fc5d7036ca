"""Weigh the sources, instead of choosing among them: each one's share of the training.

    python -m gradex.weigh --target sort
    python -m gradex.weigh --target sort add --method cosine --bootstrap 200

Several targets are weighed for at once, by the direction that lowers all of their losses. `minnorm`
gives no weights: it tells how far the sources, and the targets, are in conflict.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from gradex import runs
from gradex.config import main, option, require_not_negative
from gradex.errors import GradexError
from gradex.gradients.resampled_means import (
    SourceMeans,
    TargetMeans,
    source_means,
    target_means,
)
from gradex.gradients.row_views import RowNorm
from gradex.gradients.store import GradientStore, open_store
from gradex.records import write_json
from gradex.reporting.csv_table import write_csv
from gradex.selection.averaged_weights import AveragedWeights, averaged_weights, products
from gradex.selection.choice import Choice, make_selection
from gradex.selection.pareto import min_norm, unit_rows
from gradex.selection.weighing import common_ground, conflicts

SourceRows = Float[np.ndarray, "source dim"]
TargetRows = Float[np.ndarray, "target dim"]
TAIL = 0.05  # the smallest shares, together at most this, are what a few resamples left behind
LITTLE_COMMON = 0.1  # targets whose common direction is shorter than this pull apart
MAX_CONFLICTS = 1000
SHOWN = 5  # sources that are named on the screen; weights.csv has all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    store: str | None = option(None, "a gradient store; default: the newest run of project's")
    target: list[str] | None = option(None, "targets to weigh for; default: the store's first")
    method: Literal["match", "balance", "cosine", "minnorm"] = option(
        "match", "match: the mixture most like the target's rows; balance: ParetoDA's, which is "
        "made for weighing anew while training (finetune --mixer pareto); cosine: by likeness one "
        "by one; minnorm: no weights, only the conflicts"
    )  # fmt: skip
    row_norm: RowNorm = option("unit", "how rows are seen before they are averaged, on both sides")
    normalize: bool = option(False, "compare mean gradients by their directions alone")
    bootstrap: int = option(50, "resamples of the rows that weights are averaged over; 0: none")
    seed: int = option(0, "seed of the resamples")
    output_dir: str | None = option(None, "the run's folder; default: runs/weigh/UTC-TIME")

    def __post_init__(self):
        require_not_negative(self, "bootstrap", "seed")


def weigh(config: Config) -> Path:
    """Returns the run folder: weigh.json, conflicts.csv, and, unless the method is minnorm,
    selection.json and weights.csv."""
    store = open_store(config.store)
    targets = _targets(config, store)
    resolved = replace(config, store=str(store.path), target=targets)
    with runs.start("weigh", resolved, output_dir=config.output_dir) as run:
        sources, wanted = _means(config, store, targets)
        summary = {"store": str(store.path), "method": config.method}
        summary |= _write_conflicts(run.part, config.method, store.sources, sources[0], wanted[0])
        if config.method != "minnorm":
            averaged = averaged_weights(config.method, sources, wanted)
            summary |= _write_weights(run.part, resolved, store, averaged)
        write_json(run.part / "weigh.json", summary)
    if config.method != "minnorm":
        log.info("next: gradex finetune --selection %s", run.path)
    return run.path


def _targets(config: Config, store: GradientStore) -> list[str]:
    targets = [store.require_target(name) for name in config.target or [None]]
    if len(set(targets)) < len(targets):
        raise GradexError(f"--target: found {' '.join(targets)}, expected each target once")
    return targets


def _means(
    config: Config, store: GradientStore, targets: list[str]
) -> tuple[SourceMeans, TargetMeans]:
    """The mean gradients of all sources and of the targets; none of them may be without direction,
    in any resample."""
    draws = {"resamples": config.bootstrap, "seed": config.seed}
    sources = source_means(store, store.sources, config.row_norm, **draws)
    wanted = target_means(store, targets, config.row_norm, **draws)
    for kind, names, means in (("source", store.sources, sources), ("target", targets, wanted)):
        for name, lengths in zip(names, np.linalg.norm(means, axis=2).T, strict=True):
            if not (np.isfinite(lengths) & (lengths > 0)).all():
                raise GradexError(
                    f"{store.path}: the mean gradient of {kind} '{name}' is zero or not finite, "
                    "and has no direction; project the data again without it"
                )
    return (unit_rows(sources), unit_rows(wanted)) if config.normalize else (sources, wanted)


def _write_conflicts(
    folder: Path, method: str, names: Sequence[str], rows: SourceRows, wanted: TargetRows
) -> dict[str, Any]:
    """conflicts.csv, the worst pairs first, and what there is to say of all of them."""
    gram = products(rows, rows[0])[0]
    pairs = conflicts(gram, names)
    listed = pairs[:MAX_CONFLICTS]
    write_csv(
        folder / "conflicts.csv",
        ["source", "other", "cosine"],
        ((pair.first, pair.second, pair.cosine) for pair in listed),
    )
    possible = len(names) * (len(names) - 1) // 2
    worst = f", most of all {pairs[0].first} and {pairs[0].second}" if pairs else ""
    log.info("%d of %d pairs of sources pull apart%s", len(pairs), possible, worst)
    summary = {
        "conflicts": {"pairs": possible, "pull_apart": len(pairs), "listed": len(listed)},
        "common_ground": {"sources": common_ground(gram)} | _common_targets(wanted),
    }
    if method == "minnorm":
        log.info("the sources' common ground is %.2g; 0: no step lowers the losses of all",
                 summary["common_ground"]["sources"])  # fmt: skip
        summary["shortest_mixture"] = _by_name(names, min_norm(gram))
    return summary


def _common_targets(wanted: TargetRows) -> dict[str, float]:
    if len(wanted) == 1:
        return {}
    ground = common_ground(products(wanted, wanted[0])[0])
    level = logging.WARNING if ground < LITTLE_COMMON else logging.INFO
    log.log(
        level, "the targets' common ground is %.2g; near 0 no step lowers the losses of all, and "
        "each needs weights of its own", ground,
    )  # fmt: skip
    return {"targets": ground}


def _write_weights(
    folder: Path, config: Config, store: GradientStore, averaged: AveragedWeights
) -> dict[str, Any]:
    """weights.csv of all sources, selection.json of those with a share, and what they do."""
    found, names = averaged.weighing, store.sources
    columns = (
        found.weights, averaged.low, averaged.high, averaged.cosines, found.falls, averaged.active,
    )  # fmt: skip
    header = ["source", "weight", "low", "high", "cosine", "falls", "active"]
    lines = ([name, *map(float, line)] for name, *line in zip(names, *columns, strict=True))
    write_csv(folder / "weights.csv", header, lines)
    targets = dict(zip(config.target or [], map(float, averaged.target_shares), strict=True))
    choice = _choice(names, averaged)
    selection = make_selection(choice, store, method=f"weigh_{config.method}", targets=targets)
    selection.write(folder / "selection.json")
    against = [names[i] for i in np.argsort(found.falls, kind="stable") if found.falls[i] < 0]
    _say(config, choice, averaged, against, of=len(names))
    return {
        "targets": [{"target": name, "share": share} for name, share in targets.items()],
        "target_falls": found.target_falls,
        "least_fall": found.least_fall,
        "against": against,
        "sources_a_resample": averaged.support,
    }


def _choice(names: Sequence[str], averaged: AveragedWeights) -> Choice:
    """The sources with the largest shares, but for a tail.

    `value` is how far a unit step on the mixture moves the targets' loss, to first order and with
    rows as they are seen; `scores` are the same for each source alone.
    """
    weights = averaged.weighing.weights
    order = np.argsort(-weights, kind="stable")
    larger = np.cumsum(weights[order]) - weights[order]
    kept = [int(i) for i in order[larger < 1 - TAIL]]
    shares = weights / weights[kept].sum()
    return Choice(
        [names[i] for i in kept],
        value=-float(averaged.alone @ weights),
        scores=_by_name(names, -averaged.alone),
        trace=[
            {"step": step, "added": names[i], "weight": float(shares[i])}
            for step, i in enumerate(kept, 1)
        ],
        weights={names[i]: float(shares[i]) for i in kept},
    )


def _say(
    config: Config, choice: Choice, averaged: AveragedWeights, against: Sequence[str], *, of: int
) -> None:
    shown = ", ".join(f"{name} {choice.weights[name]:.2f}" for name in choice.selected[:SHOWN])
    more = len(choice.selected) - SHOWN
    log.info(
        "%s for %s: %s%s; %d of %d sources have a share, %.1f in a resample",
        config.method, " and ".join(config.target or []), shown,
        f" and {more} more" if more > 0 else "", len(choice.selected), of, averaged.support,
    )  # fmt: skip
    if averaged.weighing.target_falls <= 0:
        log.warning("no weights were found that lower the targets' loss, to first order")
    log.info(
        "this works against %d sources%s", len(against),
        f", most of all {against[0]}" if against else "",
    )  # fmt: skip


def _by_name(names: Sequence[str], numbers: np.ndarray) -> dict[str, float]:
    return dict(zip(names, map(float, numbers), strict=True))


if __name__ == "__main__":
    raise SystemExit(main(weigh, Config))
