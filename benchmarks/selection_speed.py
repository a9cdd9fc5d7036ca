"""How fast sources are selected: estimates a second of what searches ask for, and a whole search.

    python benchmarks/selection_speed.py

Estimates: of a forward step (ten sources and each other one), of a backward step (all sources but
each) and of random halves; each by the product of memberships and matrices, and as `predict` does
it, by differences where subsets are related. Seconds of the processor, one thread.

The search: forward stepwise to 50 of 1,729 sources (58 rows each, 400 dims), never stopping before;
at all steps with every remaining source, and with a screen: every fifth step tries all, those
between only the best of that time. One point of the meta-training, and with the screen three of
them averaged. The fall is that of the estimate, from the loss of 1 at the meta adapter.
"""

import argparse
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from estimates_per_second import KINDS, MANY_DIM, MANY_ROWS, MANY_SOURCES, ROWS, SOURCES, make_store
from threadpoolctl import threadpool_limits

from gradex.data.subsets import Subset, sample_subsets
from gradex.estimators import subset_sums
from gradex.estimators.averaged import Averaged
from gradex.estimators.protocol import Displacing
from gradex.gradients.store import GradientStore
from gradex.selection.choice import Choice
from gradex.selection.selectors import Rules, forward_select

SMALL_DIM = 100
CHOSEN = 10  # sources of the forward step whose estimates are timed
MOST, SCREEN = 50, 200
POINTS = ("10", "30")  # earlier ones, beside the store's own
TIMED = 192  # subsets, at most


def searches(names: Sequence[str]) -> dict[str, list[Subset]]:
    """What is asked for at once, by kind of search."""
    chosen, every = frozenset(names[:CHOSEN]), frozenset(names)
    return {
        "forward step": [chosen | {name} for name in names[CHOSEN:]][:TIMED],
        "backward step": [every - {name} for name in names][:TIMED],
        "random halves": sample_subsets(names, TIMED, sizes=[0.5], seed=0),
    }


@contextmanager
def by_products() -> Iterator[None]:
    """Within the block no subset is summed by differences."""
    kept, subset_sums.DIFFERENCE = subset_sums.DIFFERENCE, 10**9
    try:
        yield
    finally:
        subset_sums.DIFFERENCE = kept


def a_second(fitted: Displacing, subsets: Sequence[Subset]) -> float:
    """Estimates a second of the processor: the best of three times."""
    seconds = []
    for _ in range(3):
        start = process_time()
        fitted.predict(subsets)
        seconds.append(process_time() - start)
    return len(subsets) / min(seconds)


def print_estimates(store: GradientStore, label: str) -> None:
    for kind, make in KINDS.items():
        fitted = make().fit(store)
        for search, subsets in searches(store.sources).items():
            with by_products():
                before = a_second(fitted, subsets)
            after = a_second(fitted, subsets)
            print(
                f"| {label} | {kind} | {search} | {before:,.0f} | {after:,.0f} | "
                f"{after / before:.1f} |",
                flush=True,
            )


def forward(fitted: Displacing, names: Sequence[str], *, screen: int | None) -> Choice:
    """As `select_sources` searches for the first target, but never stopping before MOST."""

    def score(subsets: Sequence[Subset]) -> np.ndarray:
        return fitted.predict(subsets).value[:, 0]

    return forward_select(
        score, names, rules=Rules(max_sources=MOST), min_gain=-np.inf, screen=screen
    )


def print_search(
    store: GradientStore, label: str, make: Callable[[], Displacing], screens: Sequence[int | None]
) -> None:
    fitted = make().fit(store)
    whole: set[str] = set()
    for screen in screens:
        start, own = perf_counter(), process_time()
        choice = forward(fitted, store.sources, screen=screen)
        seconds, own = perf_counter() - start, process_time() - own
        whole = whole if screen else set(choice.selected)
        same = f"{len(whole.intersection(choice.selected))} of {MOST}" if whole else ""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {label} | {screen or 'none'} | {seconds:.0f} | {own:.0f} | {same} | "
            f"{1 - choice.value:.4f} | {peak:.1f} |",
            flush=True,
        )


def print_searches(store: GradientStore, rows: Sequence[int]) -> None:
    print(
        f"\n| forward to {MOST} of {MANY_SOURCES:,} sources | screen | seconds | processor | "
        "chosen without a screen too | fall | peak, GiB |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for kind, make in KINDS.items():
        print_search(store, f"{kind}, one point", make, (None, SCREEN))
    for point in POINTS:
        make_store(store.path / "points" / point, MANY_DIM, rows)
    for kind, make in KINDS.items():
        label = f"{kind}, {1 + len(POINTS)} points"
        print_search(store, label, lambda one=make: Averaged(one), (SCREEN,))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"    python {shlex.join(sys.argv)}\n")
    rng = np.random.default_rng(1)
    rows = 1 + rng.multinomial(MANY_ROWS - MANY_SOURCES, np.full(MANY_SOURCES, 1 / MANY_SOURCES))
    print("| sources, dims | estimator | subsets | products, a second | by differences | times |\n"
          "|---|---|---|---:|---:|---:|")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1):
        small = make_store(Path(folder) / "small", SMALL_DIM, [ROWS] * SOURCES)
        print_estimates(small, f"{SOURCES}, {SMALL_DIM}")
        store = make_store(Path(folder) / "many", MANY_DIM, rows.tolist())
        print_estimates(store, f"{MANY_SOURCES:,}, {MANY_DIM}")
        print_searches(store, rows.tolist())


if __name__ == "__main__":
    main()
