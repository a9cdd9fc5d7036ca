"""How many subsets a second, beside the regression that the 2024 recipe solves for each of them.

    python benchmarks/estimates_per_second.py
    python benchmarks/estimates_per_second.py --scale

The first: 38 sources of 200 rows, 13 targets, random subsets of half the sources. What is timed of
gradex is `predict`, from names of sources to values of all targets; of the recipe it is the
regression alone, its displacement's forward passes left out: scikit-learn's liblinear on the rows
of the subset, flipped by random labels. All take turns, one thread, processor time, medians.

The second: 1,729 sources with 100,000 rows in 400 dims; statistics from scratch and from the
store's cache, then 1,000 subsets: seconds of the clock and of the processor, and the peak memory
of the process.
"""

import argparse
import resource
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gradex.data.subsets import Subset, sample_subsets
from gradex.estimators.flow import Flow
from gradex.estimators.linear import Linear
from gradex.gradients.description import Side
from gradex.gradients.shards import ROW_TYPE, Faults, quantise, write_shard
from gradex.gradients.store import GradientStore

SOURCES, ROWS, TARGETS = 38, 200, 13
MANY_SOURCES, MANY_ROWS, MANY_DIM = 1729, 100_000, 400
KINDS = {"linear": Linear, "flow": Flow}
SUBSETS = {100: {"linear": 2000, "flow": 400}, 512: {"linear": 60, "flow": 30}}
REGRESSIONS = {100: 10, 512: 2}  # of the recipe, a round


def make_store(folder: Path, dim: int, source_rows: Sequence[int]) -> GradientStore:
    """Random gradients of random lengths, each source and target leaning its own way."""
    space = {
        "project_dim": dim,
        "differentiate": "loss",
        "dtype": "float16",
        "precondition": "none",
    }
    store = GradientStore.create(folder, space, origin={}, shard_rows=4096)
    rng = np.random.default_rng(0)
    for i, count in enumerate(source_rows):
        _write(store, "train", f"source{i}", _rows(count, dim, rng))
    for i in range(TARGETS):
        _write(store, "target", f"target{i}", _rows(50, dim, rng))
    store.save_plan()
    return GradientStore.open(folder)


def _rows(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(count, dim)) + rng.normal(size=dim) / 2
    return rows * rng.lognormal(sigma=0.5, size=(count, 1)) / dim**0.5


def _write(store: GradientStore, side: Side, name: str, gradients: np.ndarray) -> None:
    table = np.zeros(len(gradients), ROW_TYPE)
    table["id"] = [f"{name}-{i}" for i in range(len(table))]
    table["split"] = "train" if side == "train" else "select"
    table["grad_norm"] = np.linalg.norm(gradients, axis=1)
    table["ok"], table["loss"] = True, 1
    stored, table["scale"] = quantise(gradients, "float16")
    (shard,) = store.enter(side, name, rows=len(table), data_hash="synthetic")
    write_shard(shard, {"": (stored, table)}, faults=Faults({}, {}), versions={})


def recipe_2024(
    store: GradientStore, subsets: Sequence[Subset], *, seed: int
) -> Callable[[], list[float]]:
    """Fits the recipe's regression to each subset; returns the processor seconds of each fit."""
    rows = {name: store.source(name).gradients for name in store.sources}
    rng = np.random.default_rng(seed)

    def run() -> list[float]:
        seconds = []
        for subset in subsets:
            stacked = np.concatenate([rows[name] for name in sorted(subset)]).astype(np.float64)
            labels = rng.random(len(stacked)) < 0.7
            stacked[~labels] *= -1
            model = LogisticRegression(C=1e-4, solver="liblinear", random_state=0)
            start = process_time()
            model.fit(stacked, labels)
            seconds.append(process_time() - start)
        return seconds

    return run


def seconds_of(predict: Callable[[Sequence[Subset]], object], subsets: Sequence[Subset]) -> float:
    start = process_time()
    predict(subsets)
    return (process_time() - start) / len(subsets)


def measure_dim(dim: int, repeats: int) -> dict[str, list[float]]:
    """Processor seconds a subset, of every round."""
    most = max(SUBSETS[dim].values())
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", dim, [ROWS] * SOURCES)
        subsets = sample_subsets(store.sources, most, sizes=[0.5], seed=0)
        fitted = {name: kind().fit(store) for name, kind in KINDS.items()}
        recipe = recipe_2024(store, subsets[: REGRESSIONS[dim]], seed=0)
        times: dict[str, list[float]] = {name: [] for name in ("2024 recipe", *fitted)}
        for _ in range(repeats + 1):
            times["2024 recipe"].append(median(recipe()))
            for name, estimator in fitted.items():
                some = subsets[: SUBSETS[dim][name]]
                times[name].append(seconds_of(estimator.predict, some))
    return {name: rounds[1:] for name, rounds in times.items()}  # the first warms up


def print_speed(repeats: int) -> None:
    print("| subsets | k | a second | microseconds each | times the recipe | from - to |")
    print("|---|---:|---:|---:|---:|---:|")
    for dim in SUBSETS:
        times = measure_dim(dim, repeats)
        for name, rounds in times.items():
            ratios = [floor / own for floor, own in zip(times["2024 recipe"], rounds, strict=True)]
            label = "2024 recipe, regression alone" if name == "2024 recipe" else f"**{name}**"
            print(
                f"| {label} | {dim} | {1 / median(rounds):,.0f} | {1e6 * median(rounds):,.0f} | "
                f"{median(ratios):.1f} | {min(ratios):.1f} - {max(ratios):.1f} |"
            )


def print_scale() -> None:
    rng = np.random.default_rng(1)
    rows = 1 + rng.multinomial(MANY_ROWS - MANY_SOURCES, np.full(MANY_SOURCES, 1 / MANY_SOURCES))
    print("| 1,729 sources, 100,000 rows, 400 dims | seconds | of the processor | peak, GiB |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", MANY_DIM, rows.tolist())
        subsets = sample_subsets(store.sources, 1000, sizes=[0.5], seed=0)
        _print_clock("statistics, from the rows", lambda: Linear().fit(store))
        for name, kind in KINDS.items():
            fitted = kind()
            _print_clock(f"{name}: statistics, kept ones", lambda one=fitted: one.fit(store))
            _print_clock(f"{name}: 1,000 subsets", lambda one=fitted: one.predict(subsets))
            precision = fitted.grams_.dtype
            del fitted
    print(f"\nGram matrices in {precision}.")


def _print_clock(label: str, run: Callable[[], object]) -> None:
    start, own = perf_counter(), process_time()
    run()
    seconds, own = perf_counter() - start, process_time() - own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {label} | {seconds:.1f} | {own:.1f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", action="store_true", help="many sources instead")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    print(f"    python {shlex.join(sys.argv)}\n")
    with threadpool_limits(limits=1):
        print_scale() if args.scale else print_speed(args.repeats)


if __name__ == "__main__":
    main()
