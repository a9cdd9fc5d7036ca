"""One sketched gradient per row at the meta adapter, kept in a gradient store.

    python -m gradex.project --project_dim 100
    python -m gradex.project --meta_dir runs/meta_train/... --project_dim 512 --dtype float32

The store is named after its content, so the same command finds its own store again: shards that
are complete stay, missing ones are made.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradex import runs
from gradex.adapters import spec as adapters
from gradex.arguments import (
    TrustArguments,
    keep,
    record_of,
    recorded_settings,
)
from gradex.config import main, option, require_not_negative, require_positive
from gradex.data.formats import Row
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder
from gradex.gradients.collect import Collector
from gradex.gradients.projectors import Projector, make_projector
from gradex.gradients.shards import ShardPath, is_complete, rows_hash, write_shard
from gradex.gradients.store import GradientStore, Side, fingerprint
from gradex.models import load as models
from gradex.models.load import Base
from gradex.progress import progress
from gradex.records import read_json, require_shape, write_json
from gradex.training.prepare import (
    load_base_and_encoder,
    load_data,
    on_best_device,
    require_same_data,
)
from gradex.training.recipe import base_spec

GRADIENTS = Path("gradients")
SHARD_ROWS = 512
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments):
    meta_dir: str | None = option(None, "a run of meta_train; default: the newest")
    project_dim: int = option(100, "dimensions of a sketch")
    projector: str = option("sjlt", "the random projection: sjlt")
    dtype: Literal["float16", "float32"] = option(
        "float16", "numbers on disk: float16 with a scale a row, or float32"
    )
    differentiate: Literal["loss", "margin", "both"] = option(
        "loss", "whose gradients: a row's mean loss, its mean margin, or both"
    )
    tokens_per_batch: int = option(4096, "padded tokens a batch")
    seed: int = option(0, "seed of the projection")
    output_dir: str | None = option(None, "the store's folder; default: gradients/FINGERPRINT")

    def __post_init__(self):
        require_positive(self, "project_dim", "tokens_per_batch")
        require_not_negative(self, "seed")


@dataclass(frozen=True)
class ShardSpec:
    """One shard to make: its place, its rows and their splits."""

    path: ShardPath
    rows: Sequence[Row]
    splits: Sequence[str]

    @property
    def key(self) -> str:
        return rows_hash([row.id for row in self.rows], self.splits)


def project(config: Config) -> Path:
    """Returns the store's folder; the run folder beside it says how it was made."""
    meta_dir = Path(config.meta_dir) if config.meta_dir else runs.newest("meta_train")
    record = record_of(runs.read_config(meta_dir, "meta_train"))
    meta = recorded_settings(record, where=f"{meta_dir}/config.yaml")
    meta |= keep(asdict(config), TrustArguments)
    config = replace(config, meta_dir=str(meta_dir))
    with runs.start("project", config) as run:
        path = _project(config, meta, meta_dir)
        write_json(run.part / "store.json", {"store": str(path)})
    return path


def _project(config: Config, meta: dict[str, Any], meta_dir: Path) -> Path:
    sources = load_data(meta)
    require_same_data(sources, _recorded_hashes(meta_dir), where=str(meta_dir))
    base, encoder = load_base_and_encoder(base_spec(meta), sources, max_length=meta["max_length"])
    base = on_best_device(base)
    projector = make_projector(config.projector, config.project_dim, seed=config.seed)
    space = _space(config, meta, base, encoder, projector)
    store = _create(config, space, meta)
    collector = Collector(
        adapters.load(base, meta_dir / "adapter"),
        encoder,
        projector,
        config.differentiate,
        config.dtype,
        config.tokens_per_batch,
    )
    with runs.locked(store.path):
        _make_shards(collector, _plan(store, sources))
    return store.path


def _recorded_hashes(meta_dir: Path) -> dict[str, str]:
    """Source -> hash of its rows, as the meta-training saw them."""
    file, what = meta_dir / "sources.json", "the sources of a run of meta_train"
    records = read_json(file, what, {"sources": dict})["sources"]
    for name, record in records.items():
        require_shape(record, {"data_hash": str}, where=f"{file}: {name}", what=what)
    return {name: record["data_hash"] for name, record in records.items()}


def _space(
    config: Config, meta: dict[str, Any], base: Base, encoder: Encoder, projector: Projector
) -> dict[str, Any]:
    """Everything two gradients must share to be compared."""
    return {
        **models.fingerprint(base_spec(meta), base),
        "adapter": adapters.fingerprint(Path(config.meta_dir) / "adapter"),
        "template": encoder.template,
        "max_length": encoder.max_length,
        "differentiate": config.differentiate,
        "projector": projector.fingerprint,
        "project_dim": projector.dim,
        "precondition": "none",
        "dtype": config.dtype,
        "tokens_per_batch": config.tokens_per_batch,
    }


def _create(config: Config, space: dict[str, Any], meta: dict[str, Any]) -> GradientStore:
    origin = record_of(meta)
    name = fingerprint({"space": space, "origin": origin})[:12]
    path = Path(config.output_dir) if config.output_dir else GRADIENTS / name
    return GradientStore.create(path, space, origin=origin, shard_rows=SHARD_ROWS)


def _plan(store: GradientStore, sources: Sources) -> list[ShardSpec]:
    """Enter every source and target into the plan; the shards that are not there yet."""
    specs: list[ShardSpec] = []
    store.clear_plan()
    for side, names in (("train", sources.trainable), ("target", sources.targets)):
        for name in names:
            specs += _shard_specs(store, sources, side, name)
    store.save_plan()
    todo = [spec for spec in specs if not is_complete(spec.path, spec.key)]
    if len(todo) < len(specs):
        log.info("%s: %d of %d shards are there", store.path, len(specs) - len(todo), len(specs))
    return todo


def _shard_specs(store: GradientStore, sources: Sources, side: Side, name: str) -> list[ShardSpec]:
    parts = ("train",) if side == "train" else ("select", "test")
    rows = [(row, part) for part in parts for row in sources[name].rows[part]]
    paths = store.enter(side, name, rows=len(rows), data_hash=sources[name].data_hash)
    size = store.shard_rows
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [
        ShardSpec(path, [row for row, _ in chunk], [part for _, part in chunk])
        for path, chunk in zip(paths, chunks, strict=True)
    ]


def _make_shards(collector: Collector, todo: Sequence[ShardSpec]) -> None:
    versions = runs.versions()
    bad_rows = 0
    rows = sum(len(spec.rows) for spec in todo)
    with progress("gradients", rows, unit="row") as bar:
        for spec in todo:
            parts, bad = collector.collect(spec.rows, spec.splits)
            write_shard(spec.path, parts, bad=bad, versions=versions)
            bad_rows += len(bad)
            bar.update(len(spec.rows))
    if bad_rows:
        log.warning("%d rows have no gradient; the shards' receipts say why", bad_rows)


if __name__ == "__main__":
    raise SystemExit(main(project, Config))
