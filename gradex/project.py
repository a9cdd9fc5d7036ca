"""One sketched gradient per row at the meta adapter, kept in a gradient store.

    python -m gradex.project --project_dim 100
    python -m gradex.project --meta_dir runs/meta_train/... --project_dim 512 --num_workers 4
    python -m gradex.project --append --more_tasks new/rows.jsonl

The store is named after its content, so the same command finds its own store again: shards that
are complete stay, missing ones are made. `--append` takes rows and sources that came after the
meta-training into the newest store, or that of `--output_dir`; what is there stays as it is.

Estimates are surer when they are averaged over several points of the meta-training, so that the
store holds others like it in `points/<step>/`, of the adapters that meta_train kept on its way.
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradex import runs
from gradex.adapters.points import point_folder, points_in
from gradex.arguments import TrustArguments, keep, record_of, recorded_settings
from gradex.config import (
    main,
    option,
    require_not_negative,
    require_positive,
    with_defaults,
)
from gradex.data.recorded import Seen, load_data, require_same_data, rows_seen
from gradex.data.sources import Sources
from gradex.data.tokens import class_names
from gradex.errors import GradexError
from gradex.gradients.description import fingerprint
from gradex.gradients.making import Order, make_store
from gradex.gradients.meta_training import find_meta_training
from gradex.gradients.sketching import Sketching
from gradex.gradients.store import GradientStore, open_store
from gradex.gradients.worker import Ground, probe_rows
from gradex.records import write_json
from gradex.training.recipe import base_spec

GRADIENTS = Path("gradients")
SHARD_ROWS = 512
log = logging.getLogger(__name__)
# What a store is made with where nothing else is said; --append takes the store's own.
DEFAULTS: dict[str, Any] = {
    "project_dim": 100,
    "projector": "auto",
    "precondition": "none",
    "dtype": "float16",
    "differentiate": "loss",
    "tokens_per_batch": "4096",
    "seed": 0,
}


@dataclass(frozen=True)
class Config(TrustArguments):
    meta_dir: str | None = option(None, "a run of meta_train; default: the newest")
    project_dim: int | None = option(None, "dimensions of a sketch; default: 100")
    projector: Literal["auto", "sjlt", "rademacher", "rademacher_fastjl"] | None = option(
        None, "the random projection; default: auto, trak's kernel (rademacher_fastjl) on a GPU "
        "where it passes a self-test, else sjlt"
    )  # fmt: skip
    precondition: Literal["none", "adam"] | None = option(
        None, "divide each parameter's gradient by (mean g^2)^(1/4) first; default: none"
    )
    dtype: Literal["float16", "float32", "int8"] | None = option(
        None, "numbers on disk, float16 and int8 with a scale a row; default: float16"
    )
    differentiate: Literal["loss", "margin", "both"] | None = option(
        None, "whose gradients: a row's mean loss, its mean margin, or both; default: loss"
    )
    tokens_per_batch: str | None = option(
        None, "padded tokens a batch, or auto: as free memory allows; default: 4096"
    )
    seed: int | None = option(None, "seed of the projection; default: 0")
    features: bool = option(
        False, "keep each row's mean hidden state as well, for --estimator representation"
    )
    points: int = option(
        3, "points of the meta-training to take gradients at, as far as it kept adapters: its end, "
        "and the latest before it"
    )  # fmt: skip
    num_workers: int = option(1, "processes, with one thread and one model each; same bytes")
    max_bad_rows: float = option(
        0.001, "share of rows whose loss or gradient may be not finite; above it the run fails"
    )
    append: bool = option(False, "add what the tasks have gained to an existing store")
    more_tasks: list[str] | None = option(
        None, "with --append: task files to take in, besides those of the store; default: none"
    )
    output_dir: str | None = option(
        None, "the store's folder; default: gradients/FINGERPRINT, with --append the newest store"
    )

    def __post_init__(self):
        require_positive(self, "project_dim", "points", "num_workers")
        require_not_negative(self, "seed", "max_bad_rows")
        _require_budget(self.tokens_per_batch)
        if self.more_tasks and not self.append:
            raise GradexError(
                "--more_tasks: a new store has the tasks of its meta-training; others join an "
                "existing store with --append"
            )


def _require_budget(text: str | None) -> None:
    if text not in (None, "auto") and not (text.isdecimal() and int(text) > 0):
        raise GradexError(f"--tokens_per_batch: found {text}, expected a number above 0, or auto")


def project(config: Config) -> Path:
    """Returns the store's folder; the run folder beside it says how it was made."""
    grown = open_store(config.output_dir) if config.append else None
    meta_dir = Path(config.meta_dir) if config.meta_dir else _meta_dir_of(grown)
    config = replace(config, meta_dir=str(meta_dir))
    record = record_of(runs.read_config(meta_dir, "meta_train"))
    meta = recorded_settings(record, where=f"{meta_dir}/config.yaml")
    if grown is not None:
        meta = _with_more_tasks(grown, config)
        config = with_defaults(config, _settings_of(grown))
        config = replace(config, features=config.features or "features" in grown.space)
    config = with_defaults(config, DEFAULTS)
    meta |= keep(asdict(config), TrustArguments)
    with runs.start("project", config) as run:
        store = _project(config, meta, grown)
        write_json(run.part / "store.json", {"store": str(store.path)})
    return store.path


def _meta_dir_of(grown: GradientStore | None) -> Path:
    """The newest meta-training; for a store that is to grow, the one with its adapter."""
    found = find_meta_training(grown) if grown else None
    return found.folder if found else runs.newest("meta_train")


def _with_more_tasks(store: GradientStore, config: Config) -> dict[str, Any]:
    meta = store.recorded_settings()
    more = [place for place in config.more_tasks or () if place not in meta["tasks"]]
    return meta | {"tasks": [*meta["tasks"], *more]}


def _settings_of(store: GradientStore) -> dict[str, Any]:
    """The flags that a store was made with."""
    kept = {key: store.space[key] for key in DEFAULTS}
    kind = str(kept["precondition"]).split()[0]
    return kept | {"precondition": kind, "tokens_per_batch": str(kept["tokens_per_batch"])}


def _project(config: Config, meta: dict[str, Any], grown: GradientStore | None) -> GradientStore:
    """The store of the meta adapter, and in it those of earlier points of the meta-training."""
    meta_dir = Path(str(config.meta_dir))
    sources = load_data(meta)
    seen = rows_seen(meta_dir)
    if grown is None:
        require_same_data(sources, seen.hashes, where=str(meta_dir))
    ground = _ground(meta, meta_dir, sources, seen)
    order = Order(
        sources,
        Sketching.from_settings(asdict(config)),
        record_of(meta),
        shard_rows=SHARD_ROWS,
        num_workers=config.num_workers,
        max_bad_rows=config.max_bad_rows,
    )
    store = make_store(
        order,
        ground,
        place=lambda space: grown.path if grown else _path(config, space, order.origin),
        grown=grown,
    )
    for step, adapter in _early_adapters(config, store).items():
        _make_point(order, replace(ground, adapter=adapter), store, step, appends=config.append)
    return store


def _early_adapters(config: Config, store: GradientStore) -> dict[int, Path]:
    """Step -> adapter of the points to make, the latest first; those that are there stay whole."""
    kept = points_in(Path(str(config.meta_dir)))
    asked = list(reversed(kept))[: config.points - 1]
    if len(asked) < config.points - 1:
        log.info(
            "%s: kept %d adapters from before its end, so that the store has %d of %d points",
            config.meta_dir, len(kept), len(asked) + 1, config.points,
        )  # fmt: skip
    there = points_in(store.path)
    for step in there:
        if step not in kept:
            raise GradexError(
                f"{there[step]}: {config.meta_dir} has no adapter of this step (it has "
                f"{', '.join(map(str, kept)) or 'none'}); bring it back, or remove this folder"
            )
    return {step: kept[step] for step in sorted({*asked, *there}, reverse=True)}


def _make_point(
    order: Order, ground: Ground, store: GradientStore, step: int, *, appends: bool
) -> None:
    """A store in the store, with batches and shards of the same sizes. It has a projection of its
    own, so that an average over the points is one over sketches, too."""
    path = point_folder(store.path, step)
    sketching = replace(
        order.sketching,
        seed=order.sketching.seed + step,
        tokens_per_batch=store.space["tokens_per_batch"],
    )
    is_grown = appends and GradientStore.exists(path)
    make_store(
        replace(order, sketching=sketching, shard_rows=store.shard_rows),
        ground,
        place=lambda space: path,
        grown=GradientStore.open(path) if is_grown else None,
        title=f"gradients at step {step}",
    )


def _ground(meta: dict[str, Any], meta_dir: Path, sources: Sources, seen: Seen) -> Ground:
    """A classifier's classes are those that it was trained with, whatever was appended.

    So are the rows to try the model on: of appended ones it may not know the labels.
    """
    rows = [row for name in sources.trainable for row in sources[name].rows["train"]]
    return Ground(
        base_spec(meta),
        tuple(class_names(sources, among=seen.ids)),
        meta["max_length"],
        meta_dir / "adapter",
        probe_rows([row for row in rows if row.id in seen.ids]),
    )


def _path(config: Config, space: dict[str, Any], origin: dict[str, Any]) -> Path:
    """Named after what was asked for, so that asking again finds it."""
    name = fingerprint({"space": space, "origin": origin})[:12]
    return Path(config.output_dir) if config.output_dir else GRADIENTS / name


if __name__ == "__main__":
    raise SystemExit(main(project, Config))
