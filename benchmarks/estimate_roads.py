"""What was tried for the estimates, in the development world: the demo's of seed 1.

    python benchmarks/estimate_roads.py

Rank correlations with the test losses of 40 half-size subsets, means over the targets, from the
base and from the meta adapter. The package's defaults were chosen in this world; the one that is
reported (seed 0, benchmarks/estimate_quality.py) had no part in it.
"""

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from estimate_quality import Row, measures, number, rank, say, test_losses
from quality_worlds import Truth, demo_world, entered, held_out_sets, store_of

from gradex.data.subsets import Subset
from gradex.data.true_runs import TrueRun
from gradex.estimators import anchored
from gradex.estimators.averaged import Averaged
from gradex.estimators.calibrated import Calibrated, choose_anchors
from gradex.estimators.flow import Flow
from gradex.estimators.linear import Linear
from gradex.estimators.protocol import Estimator
from gradex.estimators.reference import reference_subsets, scale_of
from gradex.gradients.store import GradientStore

NORMS = ("raw", "soft", "unit")
LAMS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
TIMES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
SEEDS = range(6)  # of the pools that anchors are drawn from
POOL, ANCHORS = 50, 8
WITHOUT = np.log(1e-6)  # a variance that is not there


def main() -> None:
    logging.disable(logging.WARNING)
    world = demo_world(1)
    with entered(world, Path("runs/estimate_quality") / world.name):
        store = store_of(world, project_dim=100, features=True)
        truths = [Truth(world, store, start, refresh=False) for start in ("base", "meta")]
        half = held_out_sets(world, store.sources)["half"]
        true = [truth.of(half) for truth in truths]
        say("Roads without true runs", _ranking(store, half, true))
        pools = [_other_half_size(truth, half) for truth in truths]
        say("Roads with 8 anchors", _anchoring(store, true, pools))


def _ranking(
    store: GradientStore, half: Sequence[Subset], true: Sequence[list[TrueRun]]
) -> list[Row]:
    rows: list[Row] = [("road", ["from base", "from meta"])]

    def add(label: str, value: np.ndarray) -> None:
        rows.append((label, [number(rank(value, test_losses(runs, store))) for runs in true]))

    for source in NORMS:
        for target in NORMS:
            make = partial(Linear, source_norm=source, target_norm=target)
            add(f"{source} sources, {target} targets", _value(Averaged(make), store, half))
    for lam in LAMS:
        add(f"linear, lam {lam:g}", _value(Averaged(partial(Linear, lam=lam)), store, half))
    for t in TIMES:
        add(f"flow, t {t:g}", _value(Averaged(partial(Flow, t=t)), store, half))
    points = [_standard(Linear(), one, half) for one in (store, *store.points())]
    for label, chosen in (("last", [0]), ("10%", [1]), ("30%", [2]), ("last, 10%", [0, 1])):
        add(f"points of the meta-training: {label}", np.mean([points[i] for i in chosen], axis=0))
    both = [_standard(Averaged(make), store, half) for make in (Linear, Flow)]
    add("mean of linear and flow", np.mean(both, axis=0))
    mixed = [
        _standard(Averaged(partial(Linear, source_norm=norm)), store, half)
        for norm in ("soft", "unit")
    ]
    add("mean of soft and unit sources", np.mean(mixed, axis=0))
    return rows


def _value(estimator: Estimator, store: GradientStore, subsets: Sequence[Subset]) -> np.ndarray:
    return estimator.fit(store, split="test").predict(subsets).value


def _standard(estimator: Estimator, store: GradientStore, subsets: Sequence[Subset]) -> np.ndarray:
    fitted = estimator.fit(store, split="test")
    scale = scale_of(fitted.predict(reference_subsets(store.sources)).value)
    return scale.standard(fitted.predict(subsets).value)


def _other_half_size(truth: Truth, half: Sequence[Subset]) -> list[TrueRun]:
    """The anchors of the benchmark's seeds: half-size subsets that are not held out."""
    size, held_out = len(half[0]), set(half)
    known = [run for (subset, seed), run in truth.known.items() if seed == 0]
    return [run for run in known if len(run.subset) == size and run.subset not in held_out]


def _anchoring(
    store: GradientStore, true: Sequence[list[TrueRun]], pools: Sequence[list[TrueRun]]
) -> list[Row]:
    heads = [f"from {start}: {what}" for start in ("base", "meta") for what in ("rank", "R^2")]
    rows: list[Row] = [("road", heads)]
    line, bend, member, noise = anchored.PRIOR
    for label, constants, is_random in (
        ("as it is", {}, False),
        ("random anchors", {}, True),
        ("a straight line alone", {"PRIOR": np.array([line, WITHOUT, WITHOUT, noise])}, False),
        ("no residual on membership", {"PRIOR": np.array([line, bend, WITHOUT, noise])}, False),
        ("no bend", {"PRIOR": np.array([line, WITHOUT, member, noise])}, False),
        ("all sources of equal relevance", {"EVEN_SHARE": 1.0}, False),
        ("relevance by estimates alone", {"EVEN_SHARE": 0.0}, False),
    ):
        with _changed(constants):
            cells = [
                number(x)
                for runs, pool in zip(true, pools, strict=True)
                for x in _mean_measures(store, runs, pool, is_random=is_random)[:2]
            ]
        rows.append((label, cells))
    return rows


@contextmanager
def _changed(constants: dict[str, object]):
    before = {name: getattr(anchored, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(anchored, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(anchored, name, value)


def _mean_measures(
    store: GradientStore, runs: Sequence[TrueRun], pool: Sequence[TrueRun], *, is_random: bool
) -> np.ndarray:
    plain = Averaged(Linear).fit(store)
    found = []
    for seed in SEEDS:
        drawn = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:POOL]]
        by_subset = {run.subset: run for run in drawn}
        chosen = list(by_subset)[:ANCHORS]
        if not is_random:
            chosen = choose_anchors(plain, store.sources, list(by_subset), ANCHORS)
        fitted = Calibrated({"linear": partial(Averaged, Linear)}, [by_subset[s] for s in chosen])
        said = fitted.fit(store, split="test").predict([run.subset for run in runs])
        found.append(measures(said, test_losses(runs, store)))
    return np.mean(found, axis=0)


if __name__ == "__main__":
    main()
