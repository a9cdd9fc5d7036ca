"""How well estimates tell true fine-tunes of held-out subsets: every estimator, in two worlds.

    python benchmarks/estimate_quality.py
    python benchmarks/estimate_quality.py --demo_seed 1
    python benchmarks/estimate_quality.py --world DIR --model MODEL --target A B C D

Ranks and errors are of the targets' test rows, means over the targets. Estimates are made from the
test rows' gradients, calibrations from select rows, and no anchor is held out. True results are
read from benchmarks/truth/; what is not there is fine-tuned. The gradients are made anew in --work.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from quality_worlds import (
    Truth,
    World,
    add_world_flags,
    entered,
    held_out_sets,
    said_world,
    store_of,
)

from gradex.arguments import AnchorArguments, EstimatorArguments
from gradex.data.evidence import coverage, log_r2
from gradex.data.metrics import spearman
from gradex.data.subsets import Subset
from gradex.data.true_runs import TrueRun, scores_of
from gradex.errors import GradexError
from gradex.estimators import BASELINES, make_calibrated, make_estimator
from gradex.estimators.protocol import Estimates, Estimator
from gradex.gradients.store import GradientStore
from gradex.reporting.evidence import FROM_OTHER_RUNS
from gradex.selection.selectors import Rules, forward_select
from gradex.training.anchors import pick_anchors

STARTS = ("base", "meta")
Make = Callable[[], Estimator]
Row = tuple[str, list[str]]


def main() -> None:
    said = _arguments()
    logging.disable(logging.WARNING)
    world = said_world(said)
    with entered(world, Path(said.work) / world.name):
        store = store_of(world, project_dim=100, features=True)
        truths = {start: Truth(world, store, start, refresh=said.refresh) for start in said.start}
        held_out = held_out_sets(world, store.sources)
        if world.demo_seed is not None:
            held_out["forward's path"] = _forward_paths(store, held_out)
        true = {
            start: {label: truth.of(subsets) for label, subsets in held_out.items()}
            for start, truth in truths.items()
        }
        half = {start: true[start]["half"] for start in truths}
        say("No true run: rank correlation on half-size subsets", _uncalibrated(world, store, half))
        anchors = {
            start: _anchors(world, truth, store, held_out) for start, truth in truths.items()
        }
        say("With anchors, on half-size subsets", _calibrated(world, store, half, anchors))
        fitted = _fitted(store, anchors)
        say("Subsets of other sizes", _other_sizes(store, true, fitted))
        say("By target, half-size subsets", _by_target(store, half, fitted))
        say("How sure the truth is", _ceiling(world, truths, half))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_world_flags(parser)
    parser.add_argument("--start", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--work", default="runs/estimate_quality", help="where gradients are kept")
    return parser.parse_args()


def _estimator(**flags: object) -> Make:
    return lambda: make_estimator(EstimatorArguments(**flags))


def _forward_paths(store: GradientStore, held_out: Mapping[str, list[Subset]]) -> list[Subset]:
    """What forward selection passes through, for every target, in its first six steps."""
    fitted = _estimator()().fit(store)
    found: dict[Subset, None] = {}
    for column in range(len(store.targets)):

        def score(subsets: Sequence[Subset], column: int = column) -> np.ndarray:
            return fitted.predict(subsets).value[:, column]

        rules = Rules(max_sources=6)
        steps = forward_select(score, store.sources, rules=rules, min_gain=-np.inf).selected
        found |= dict.fromkeys(frozenset(steps[:size]) for size in range(1, len(steps) + 1))
    known = {subset for subsets in held_out.values() for subset in subsets}
    return [subset for subset in found if subset not in known]


def _uncalibrated(
    world: World, store: GradientStore, half: Mapping[str, list[TrueRun]]
) -> list[Row]:
    rows = [("estimate", [f"from {start}" for start in half])]
    methods: dict[str, Make] = {
        "**linear**": _estimator(),
        **{f"linear, lam {lam}": _estimator(lam=lam) for lam in (0.1, 0.01, 0.001)},
        "flow, t 300": _estimator(estimator="flow"),
        "logistic on losses": _estimator(estimator="logistic_loss"),
        "logistic on margins, with offsets": _estimator(estimator="logistic"),
        "the recipe of 2024": _estimator(estimator="logistic", as_published=True),
        "shift (real forward pass)": _estimator(estimator="shift"),
        **{f"baseline: {name}": _estimator(estimator=name) for name in BASELINES[:-1]},
    }
    for label, make in methods.items():
        rows.append((label, [_ranks_of(make, store, runs) for runs in half.values()]))
    for method, predict in list(FROM_OTHER_RUNS.items())[1:]:
        cells = []
        for runs in half.values():
            value = predict([run.subset for run in runs], test_losses(runs, store))
            cells.append(number(rank(value, test_losses(runs, store))))
        rows.append((f"{method} (the rest of the true runs)", cells))
    for label, (make, other) in _other_stores(world).items():
        cells = [_ranks_of(make, other, runs) for runs in half.values()]
        rows.append((f"linear, {label}", cells))
    return rows


def _other_stores(world: World) -> dict[str, tuple[Make, GradientStore]]:
    """One point of the meta-training alone, and other sketches."""
    single = store_of(world, project_dim=100, points=1, output_dir="gradients/one-point")
    found = {"one point of the meta-training": (_estimator(), single)}
    if world.demo_seed is None:
        return found
    adam = store_of(world, project_dim=100, precondition="adam")
    nearly_exact = store_of(world, project_dim=8192, differentiate="loss")
    return found | {
        "adam preconditioner": (_estimator(), adam),
        "400 dims": (_estimator(), store_of(world, project_dim=400, differentiate="loss")),
        "8,192 dims, compressed to 1,000": (_estimator(compress=1000), nearly_exact),
    }


def _ranks_of(make: Make, store: GradientStore, runs: Sequence[TrueRun]) -> str:
    try:
        fitted = make().fit(store, split="test")
        value = fitted.predict([run.subset for run in runs]).value
    except GradexError as error:
        return f"none: {error}"
    return number(rank(value, test_losses(runs, store)))


def test_losses(runs: Sequence[TrueRun], store: GradientStore) -> np.ndarray:
    return scores_of(runs, list(store.targets), split="test")


def rank(value: np.ndarray, truth: np.ndarray) -> float:
    pairs = zip(value.T.tolist(), truth.T.tolist(), strict=True)
    return float(np.mean([spearman(a, b) for a, b in pairs]))


def number(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


Anchors = Mapping[str, list[list[TrueRun]]]  # start -> by seed


def _anchors(
    world: World, truth: Truth, store: GradientStore, held_out: Mapping[str, list[Subset]]
) -> list[list[TrueRun]]:
    """True runs for every seed; the first of them are those that fewer would have been."""
    known = {subset for subsets in held_out.values() for subset in subsets}
    return [
        truth.of(
            pick_anchors(
                EstimatorArguments(), AnchorArguments(anchor_seed=seed), store, store.targets,
                count=world.most_anchors, exclude=known,
            )
        )
        for seed in range(world.anchor_seeds)
    ]  # fmt: skip


def _calibrated(
    world: World, store: GradientStore, half: Mapping[str, list[TrueRun]], anchors: Anchors
) -> list[Row]:
    heads = [f"from {start}: {what}" for start in half for what in ("rank", "R^2", "coverage")]
    rows = [("estimate", heads)]
    larger = store_of(world, project_dim=400, differentiate="loss")
    for label, count, flags, where in (
        ("**linear, 8 anchors**", 8, {}, store),
        ("linear, 4 anchors", 4, {}, store),
        ("linear, 16 anchors", 16, {}, store),
        ("linear at 400 dims, 8 anchors", 8, {}, larger),
        ("flow, 8 anchors", 8, {"estimator": "flow"}, store),
        ("cosine, 8 anchors", 8, {"estimator": "cosine"}, store),
        ("the 8 anchors alone (surrogate)", 8, {"estimator": "surrogate"}, store),
        ("the 16 anchors alone (surrogate)", 16, {"estimator": "surrogate"}, store),
    ):
        if count > world.most_anchors:
            continue
        cells: list[str] = []
        for start, runs in half.items():
            found = [_told(where, runs, seed[:count], flags) for seed in anchors[start]]
            cells += _spread(found)
        rows.append((label, cells))
    return rows


def _told(
    store: GradientStore, runs: Sequence[TrueRun], anchors: Sequence[TrueRun], flags: dict
) -> tuple[float, float, float]:
    """Rank correlation, R^2 of log loss and coverage of 90% intervals, means over targets."""
    arguments = EstimatorArguments(**flags)
    if arguments.estimator == "surrogate":
        fitted = make_estimator(arguments, runs=anchors)
    else:
        fitted = make_calibrated(arguments, anchors)
    said = fitted.fit(store, split="test").predict([run.subset for run in runs])
    return measures(said, test_losses(runs, store))


def measures(said: Estimates, truth: np.ndarray) -> tuple[float, float, float]:
    r2 = [log_r2(a, b) for a, b in zip(said.value.T, truth.T, strict=True)]
    return rank(said.value, truth), float(np.mean(r2)), _coverage(said, truth)


def _coverage(said: Estimates, truth: np.ndarray) -> float:
    sides = zip(said.low.T, said.high.T, truth.T, strict=True)
    return float(np.mean([coverage(*side) for side in sides]))


def _spread(found: Sequence[tuple[float, ...]]) -> list[str]:
    return [
        f"{number(np.mean(column))} ± {number(np.std(column))}"
        for column in zip(*found, strict=True)
    ]


def _fitted(store: GradientStore, anchors: Anchors) -> dict[str, list[Estimator]]:
    """The default with eight anchors, by start and seed of the anchors."""
    return {
        start: [
            make_calibrated(EstimatorArguments(), seed[:8]).fit(store, split="test")
            for seed in by_seed
        ]
        for start, by_seed in anchors.items()
    }


def _other_sizes(
    store: GradientStore,
    true: Mapping[str, Mapping[str, list[TrueRun]]],
    fitted: Mapping[str, list[Estimator]],
) -> list[Row]:
    what = ("rank", "rank, 8 anchors", "R^2", "coverage", "best one found", "with anchors")
    rows = [("subsets", [f"from {start}: {name}" for start in true for name in what])]
    plain = _estimator()().fit(store, split="test")
    for label in next(iter(true.values())):
        cells: list[str] = []
        for start, sets in true.items():
            subsets, truth = [run.subset for run in sets[label]], test_losses(sets[label], store)
            said = [one.predict(subsets) for one in fitted[start]]
            value, best = plain.predict(subsets).value, truth.argmin(0)
            told, r2, covered = np.mean([measures(one, truth) for one in said], axis=0)
            hits = np.mean([(one.value.argmin(0) == best).mean() for one in said])
            cells += [number(x) for x in (rank(value, truth), told, r2, covered)]
            cells += [number((value.argmin(0) == best).mean()), number(hits)]
        rows.append((f"{label} ({len(subsets)})", cells))
    return rows


def _by_target(
    store: GradientStore,
    half: Mapping[str, list[TrueRun]],
    fitted: Mapping[str, list[Estimator]],
) -> list[Row]:
    rows = [("target", [f"from {s}: {w}" for s in half for w in ("rank", "8 anchors", "R^2")])]
    plain = _estimator()().fit(store, split="test")
    values = {start: plain.predict([r.subset for r in runs]).value for start, runs in half.items()}
    said = {
        start: [one.predict([r.subset for r in runs]).value for one in fitted[start]]
        for start, runs in half.items()
    }
    for column, target in enumerate(store.targets):
        cells: list[str] = []
        for start, runs in half.items():
            truth = test_losses(runs, store)[:, column]
            found = [
                (spearman(v[:, column], truth), log_r2(v[:, column], truth)) for v in said[start]
            ]
            cells.append(number(spearman(values[start][:, column], truth)))
            cells += [number(x) for x in np.mean(found, axis=0)]
        rows.append((target, cells))
    return rows


def _ceiling(
    world: World, truths: Mapping[str, Truth], half: Mapping[str, list[TrueRun]]
) -> list[Row]:
    """Two true runs of a subset that differ in the seed of their training alone."""
    rows = [("start", [f"rank correlation over {world.twice} subsets", "R^2 of log loss"])]
    for start, truth in truths.items():
        first = half[start][: world.twice]
        second = truth.of([run.subset for run in first], seed=1)
        a, b = test_losses(first, truth.store), test_losses(second, truth.store)
        r2 = [log_r2(x, y) for x, y in zip(a.T, b.T, strict=True)]
        rows.append((start, [number(rank(a, b)), number(np.mean(r2))]))
    return rows


def say(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}\n")
    for index, (label, cells) in enumerate(rows):
        print(f"| {' | '.join([label, *cells])} |")
        if index == 0:
            print("|" + "---|" * (len(cells) + 1))


if __name__ == "__main__":
    main()
