"""The gradient store: sketched gradients of every row, by source, in one space.

    manifest.json        format and the space: model, adapter, tokenizer, projector, dtype, ...
    origin.json          base, tasks and recipe that the gradients belong to, for later stages
    plan.json            the sources and targets in order, with their rows, shards and data hash
    train/<source>/      shards of the training rows
    target/<target>/     shards of the select and test rows

Stores of different spaces cannot be compared, so every reader checks the fingerprint of the space.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from gradex.arguments import recorded_settings
from gradex.data.subsets import check_name, encode_name
from gradex.errors import GradexError, unknown
from gradex.gradients.shards import ShardPath, read_gradients, read_receipt, read_table
from gradex.models.losses import Objective
from gradex.records import read_json, require_shape, write_json
from gradex.runs import newest

FORMAT = "gradex-store/1"
MANIFEST = {
    "space": {"project_dim": int, "differentiate": str, "dtype": str},
    "shard_rows": int,
}
PLAN = {"train": dict, "target": dict}
ENTRY = {"rows": int, "shards": int, "data_hash": str}
Side = Literal["train", "target"]


@dataclass(frozen=True)
class Block:
    """Rows of one shard: gradients in float32 and the table that describes them."""

    gradients: Float[np.ndarray, "row dim"]
    table: np.ndarray


class GradientStore:
    """A store on disk, opened for reading; `create` makes one or checks an existing one."""

    def __init__(self, path: Path, manifest: dict[str, Any], plan: dict[str, Any]):
        self.path = path
        self.space: dict[str, Any] = manifest["space"]
        self.shard_rows: int = manifest["shard_rows"]
        self.plan = plan

    @classmethod
    def create(
        cls, path: Path, space: dict[str, Any], *, origin: dict[str, Any], shard_rows: int
    ) -> "GradientStore":
        """A store of this space at `path`: a new one, or the one there if it is of this space."""
        if (path / "manifest.json").exists():
            store = cls.open(path)
            store.require_same_space(space, other="this run")
            if store.origin != origin:
                raise GradexError(
                    f"{path}: the store was made from other tasks or another recipe than this "
                    "meta-training's; name another --output_dir"
                )
            return store
        if path.exists() and any(path.iterdir()):
            raise GradexError(f"{path}: holds files but no manifest.json; name an empty folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GradexError(f"--output_dir {path}: cannot be made ({error.strerror})") from None
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(space),
            "space": space,
            "shard_rows": shard_rows,
        }
        write_json(path / "origin.json", origin)
        write_json(path / "plan.json", {"train": {}, "target": {}})
        write_json(path / "manifest.json", manifest)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "GradientStore":
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise GradexError(f"{path}: not a gradient store (it has no manifest.json)")
        manifest = read_json(path / "manifest.json", "a gradient store's manifest", {"format": str})
        if manifest["format"] != FORMAT:
            raise GradexError(
                f"{path}: the store's format is {manifest['format']}, expected {FORMAT}; make it "
                "anew with project"
            )
        require_shape(manifest, MANIFEST, where=f"{path}/manifest.json", what="a store's manifest")
        plan = read_json(path / "plan.json", "a gradient store's plan", PLAN)
        for name, entry in [*plan["train"].items(), *plan["target"].items()]:
            check_name(name, f"{path}/plan.json")
            require_shape(entry, ENTRY, where=f"{path}/plan.json: {name}", what="a store's plan")
        return cls(path, manifest, plan)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.space)

    @property
    def origin(self) -> dict[str, Any]:
        """What the gradients were made from: `base`, `tasks` and `recipe` settings."""
        shape = {"base": dict, "tasks": dict, "recipe": dict}
        return read_json(self.path / "origin.json", "what a gradient store was made from", shape)

    def recorded_settings(self) -> dict[str, Any]:
        """Those settings, checked, as one mapping."""
        return recorded_settings(self.origin, where=f"{self.path}/origin.json")

    @property
    def dim(self) -> int:
        return self.space["project_dim"]

    @property
    def sources(self) -> list[str]:
        return list(self.plan["train"])

    @property
    def targets(self) -> list[str]:
        return list(self.plan["target"])

    def require_same_space(self, space: dict[str, Any], *, other: str) -> None:
        """Refuse, naming the first field that differs and both its values."""
        for key in (*self.space, *space):
            mine, theirs = self.space.get(key), space.get(key)
            if mine != theirs:
                raise GradexError(
                    f"{self.path}: the store was made with {key}={mine}, {other} has {key}="
                    f"{theirs}; gradients of the two cannot be compared, use another store"
                )

    def enter(self, side: Side, name: str, *, rows: int, data_hash: str) -> list[ShardPath]:
        """Put a source or target into the plan; returns its shards, written or not."""
        shards = -(-rows // self.shard_rows)
        self.plan[side][name] = {"rows": rows, "shards": shards, "data_hash": data_hash}
        return self.shards(side, name)

    def clear_plan(self) -> None:
        """Begin a plan anew: sources that a later run no longer has are not read."""
        self.plan = {"train": {}, "target": {}}

    def save_plan(self) -> None:
        write_json(self.path / "plan.json", self.plan)

    def shards(self, side: Side, name: str) -> list[ShardPath]:
        entry = self._entry(side, name)
        folder = self.path / side / encode_name(name)
        return [ShardPath(folder, index) for index in range(entry["shards"])]

    def receipts(self, side: Side, name: str) -> list[dict]:
        return [read_receipt(shard) for shard in self.shards(side, name)]

    def data_hashes(self) -> dict[str, str]:
        """Source or target -> hash of the rows that its gradients were taken of."""
        entries = self.plan["train"] | self.plan["target"]
        return {name: entry["data_hash"] for name, entry in entries.items()}

    def table(self, side: Side, name: str) -> np.ndarray:
        """What is known of the good rows, without their gradients."""
        tables = [self._table(shard, "") for shard in self.shards(side, name)]
        return np.concatenate([table[table["ok"]] for table in tables])

    def _table(self, shard: ShardPath, ending: str) -> np.ndarray:
        rows = read_receipt(shard)["rows"]
        return read_table(shard.file(f"{ending}.rows.npy"), rows=rows)

    def blocks(
        self, side: Side, name: str, *, objective: Objective = "loss", split: str | None = None
    ) -> Iterator[Block]:
        """The good rows, a shard at a time, as float32: stores may be larger than memory."""
        ending = self._ending(objective)
        for shard in self.shards(side, name):
            table = self._table(shard, ending)
            file = shard.file(f"{ending}.npy")
            stored = read_gradients(file, rows=len(table), dim=self.dim)
            keep = table["ok"]
            if split is not None:
                keep = keep & (table["split"] == split.encode())
            table = table[keep]
            gradients = stored[keep].astype(np.float32) * table["scale"][:, None]
            if not np.isfinite(gradients).all():
                raise GradexError(f"{file}: holds numbers that are not finite; project redoes it")
            yield Block(gradients, table)

    def source(self, name: str, *, objective: Objective = "loss") -> Block:
        """All good training rows of a source."""
        return _joined(list(self.blocks("train", name, objective=objective)), f"source {name}")

    def target(self, name: str, split: str, *, objective: Objective = "loss") -> Block:
        """All good rows of a target's select or test split."""
        blocks = self.blocks("target", name, objective=objective, split=split)
        return _joined(list(blocks), f"target {name}'s {split} rows")

    def rows(self, ids: Sequence[str], *, objective: Objective = "loss") -> np.ndarray:
        """The gradients of training rows by id, in the order of the ids."""
        wanted = {row_id.encode(): position for position, row_id in enumerate(ids)}
        out = np.full((len(ids), self.dim), np.nan, dtype=np.float32)
        for name in self.sources:
            for block in self.blocks("train", name, objective=objective):
                for row, row_id in enumerate(block.table["id"]):
                    if row_id in wanted:
                        out[wanted[row_id]] = block.gradients[row]
        missing = np.isnan(out).any(axis=1)
        if missing.any():
            raise GradexError(f"{self.path}: no good row with id {ids[int(missing.argmax())]}")
        return out

    def require_target(self, name: str | None) -> str:
        """The named target, or the first one where none is named."""
        if not self.targets:
            raise GradexError(f"{self.path}: the store holds no target")
        if name is not None:
            self._entry("target", name)
        return name or self.targets[0]

    def _entry(self, side: Side, name: str) -> dict[str, Any]:
        if name not in self.plan[side]:
            raise unknown(
                "source" if side == "train" else "target", name, self.plan[side], str(self.path)
            )
        return self.plan[side][name]

    def _ending(self, objective: Objective) -> str:
        kept = self.space["differentiate"]
        if kept == "both":
            return "" if objective == "loss" else ".margin"
        if kept != objective:
            raise GradexError(
                f"{self.path}: holds gradients of the {kept}, this needs those of the {objective}; "
                f"make a store with `--differentiate {objective}` or both"
            )
        return ""


def _joined(blocks: list[Block], what: str) -> Block:
    if not any(len(block.table) for block in blocks):
        raise GradexError(f"{what}: the store holds no good row of it")
    return Block(
        np.concatenate([block.gradients for block in blocks]),
        np.concatenate([block.table for block in blocks]),
    )


def open_store(path: str | None) -> GradientStore:
    """The named store, or that of the newest run of project."""
    if path is None:
        file = newest("project") / "store.json"
        path = read_json(file, "where a run of project left its store", {"store": str})["store"]
    return GradientStore.open(Path(path))


def fingerprint(space: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()
