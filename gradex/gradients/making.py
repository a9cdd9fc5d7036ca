"""Make a store whole: the sketched gradients of every row at one adapter.

What is there and undamaged stays as it is; all else is made, by as many workers as are asked for.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.adapters import folder as adapters
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, guess_lengths
from gradex.engines import Work, one_thread, run_local
from gradex.errors import GradexError
from gradex.gradients.per_sample import Pass
from gradex.gradients.plan import ShardSpec, plan_shards, require_only_added
from gradex.gradients.sketching import Sketching
from gradex.gradients.store import GradientStore
from gradex.gradients.worker import Ground, StartWorker
from gradex.models import load as models
from gradex.models.load import Base
from gradex.progress import progress, say_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a store is to hold and how it is made, whichever adapter it is of."""

    sources: Sources
    sketching: Sketching
    origin: dict[str, Any]
    shard_rows: int
    num_workers: int
    max_bad_rows: float


def make_store(
    order: Order,
    ground: Ground,
    *,
    place: Callable[[dict[str, Any]], Path],
    grown: GradientStore | None = None,
    title: str = "gradients",
) -> GradientStore:
    """The store of the ground's adapter, at the place that its space is given.

    `grown` is one that is there already, to be given what the sources have gained.
    """
    if grown is not None:
        require_only_added(grown, order.sources)
    base, gradients, encoder = ground.load()
    fixed = _fixed_space(ground, base, encoder)
    path = place(fixed | order.sketching.space())
    store = grown or _open(path) or _create(path, fixed, order, gradients, encoder)
    sketching = order.sketching.as_in(store.space)
    store.require_same_space(fixed | sketching.space(), other="this run")
    with runs.locked(store.path):
        store.require_unchanged()
        if grown is None:
            store.require_same_origin(order.origin)
        todo = plan_shards(store, order.sources)
        store.save_origin(order.origin)
        start = StartWorker(ground, sketching, store.precondition, runs.versions())
        # Several workers load models of their own: this one goes before they come.
        is_alone = min(order.num_workers, len(todo)) <= 1
        begin = start.begin_with(gradients, encoder) if is_alone else start
        del base, gradients
        _make_shards(todo, begin, encoder, num_workers=order.num_workers, title=title)
    _require_few_bad_rows(store, order.max_bad_rows)
    return store


def _fixed_space(ground: Ground, base: Base, encoder: Encoder) -> dict[str, Any]:
    """What two gradients must share to be compared, besides how they are sketched."""
    return {
        **models.fingerprint(ground.spec, base),
        "adapter": adapters.fingerprint(ground.adapter),
        "template": encoder.template,
        "max_length": encoder.max_length,
    }


def _open(path: Path) -> GradientStore | None:
    return GradientStore.open(path) if GradientStore.exists(path) else None


def _create(
    path: Path, fixed: dict[str, Any], order: Order, gradients: Pass, encoder: Encoder
) -> GradientStore:
    """A new store, for which what was left open is measured first."""
    with one_thread():
        sketching, divisor = order.sketching.settle(
            gradients, encoder, order.sources, num_workers=order.num_workers
        )
    return GradientStore.create(
        path,
        fixed | sketching.space(),
        origin=order.origin,
        shard_rows=order.shard_rows,
        slow_layers=gradients.slow_layers(),
        precondition=divisor,
    )


def _make_shards(
    todo: Sequence[ShardSpec],
    begin: Callable[[int], Work],
    encoder: Encoder,
    *,
    num_workers: int,
    title: str,
) -> None:
    guesses = {spec.path: sum(guess_lengths(encoder, spec.rows)) for spec in todo}
    with progress(title, sum(guesses.values()), unit="token") as bar:

        def advance(name: str, tokens: int) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update(tokens)

        for report in run_local(todo, begin, num_workers=num_workers, advance=advance):
            # What is left stays a guess; what is done is known.
            bar.total += report.tokens - guesses[report.spec.path]


def _require_few_bad_rows(store: GradientStore, limit: float) -> None:
    """Say what has no gradient, from the receipts; fail where it is too much."""
    rows, left_out, bad = 0, Counter(), {}
    for side, name in store.entries():
        for receipt in store.receipts(side, name):
            rows += receipt["rows"]
            left_out.update(receipt["left_out"].values())
            bad |= {(name, row): reason for row, reason in receipt["bad"].items()}
    for reason, count in left_out.items():  # at every adapter the same rows
        say_once(f"{count} rows left out: {reason}", level=logging.WARNING)
    for (name, row), reason in list(bad.items())[:5]:
        log.warning("row %s of %s: %s", row, name, reason)
    if len(bad) > limit * rows:
        raise GradexError(
            f"{len(bad)} of {rows} rows have no finite gradient, more than --max_bad_rows {limit} "
            "allows; look at those rows and at the meta-training's loss curve, or raise the limit"
        )
