"""What a gradient store says of itself: its space, its origin, and the shards it is to have.

    manifest.json        format and the space: model, adapter, tokenizer, projector, dtype, ...
    precondition.npy     where the space is preconditioned: what each parameter is divided by
    origin.json          base, tasks and recipe that the gradients belong to, for later stages
    plan.json            the sources and targets in order, with their rows, shards and data hash

Each holds a checksum of itself: no other file could tell a flipped byte in it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import xxhash
from jaxtyping import Float

from gradex.arguments import recorded_settings
from gradex.data.subsets import check_name, encode_name
from gradex.errors import GradexError, unknown
from gradex.gradients.shards import STORED_TYPES, ShardPath
from gradex.records import read_json, read_sealed, replacing, require_shape, write_sealed
from gradex.runs import locked

FORMAT = "gradex-store/2"
MANIFEST = {
    "space": {"project_dim": int, "differentiate": str, "dtype": str, "precondition": str},
    "shard_rows": int,
    "slow_layers": dict,
}
PLAN = {"train": dict, "target": dict}
ENTRY = {"rows": int, "shards": int, "data_hash": str}
Side = Literal["train", "target"]
StoreT = TypeVar("StoreT", bound="DescribedStore")


class DescribedStore:
    """A store's folder as its descriptions have it: `create` makes an empty one, `open` reads one,
    `enter` plans its shards. The numbers are in `GradientStore`."""

    def __init__(self, path: Path, manifest: dict[str, Any], plan: dict[str, Any]):
        self.path = path
        self.space: dict[str, Any] = manifest["space"]
        self.shard_rows: int = manifest["shard_rows"]
        self.plan = plan

    @classmethod
    def create(
        cls: type[StoreT],
        path: Path,
        space: dict[str, Any],
        *,
        origin: dict[str, Any],
        shard_rows: int,
        slow_layers: dict[str, str] | None = None,
        precondition: Float[np.ndarray, " param"] | None = None,
    ) -> StoreT:
        """A new and empty store of this space at `path`, which is there when it is whole."""
        part = path.with_name(path.name + ".part")
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(space),
            "space": space,
            "shard_rows": shard_rows,
            "slow_layers": slow_layers or {},
        }
        try:
            part.mkdir(parents=True, exist_ok=True)
            with locked(part):
                _require_still_to_make(path, part)
                for left in part.glob("precondition.npy*"):  # of another space, perhaps
                    left.unlink()
                write_sealed(part / "origin.json", origin)
                write_sealed(part / "plan.json", {"train": {}, "target": {}})
                if precondition is not None:
                    with replacing(part / "precondition.npy") as stream:
                        np.save(stream, precondition.astype(np.float32), allow_pickle=False)
                write_sealed(part / "manifest.json", manifest)
                part.rename(path)  # over an empty folder, if there is one
        except OSError as error:
            _require_still_to_make(path, part)
            raise GradexError(f"--output_dir {path}: cannot be made ({error.strerror})") from None
        return cls.open(path)

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether a store is there; files that are no store are refused."""
        if (path / "manifest.json").exists():
            return True
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise GradexError(f"{path}: holds files but no manifest.json; name an empty folder")
        return False

    @classmethod
    def open(cls: type[StoreT], path: Path) -> StoreT:
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
        if manifest["space"]["project_dim"] < 1 or manifest["shard_rows"] < 1:
            raise GradexError(
                f"{path}/manifest.json: found project_dim {manifest['space']['project_dim']} and "
                f"shard_rows {manifest['shard_rows']}, expected both above 0; make the store anew"
            )
        if manifest["space"]["dtype"] not in STORED_TYPES:
            raise unknown("dtype", manifest["space"]["dtype"], STORED_TYPES, str(path))
        read_sealed(path / "manifest.json", "a gradient store's manifest")
        plan = read_sealed(path / "plan.json", "a gradient store's plan", PLAN)
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
        return read_sealed(self.path / "origin.json", "what a gradient store was made from", shape)

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

    def entries(self) -> Iterator[tuple[Side, str]]:
        """All sources, then all targets, each with its side."""
        yield from (("train", name) for name in self.sources)
        yield from (("target", name) for name in self.targets)

    def require_same_space(self, space: dict[str, Any], *, other: str) -> None:
        """Refuse, naming the first field that differs and both its values."""
        for key in (*self.space, *space):
            mine, theirs = self.space.get(key), space.get(key)
            if mine != theirs:
                raise GradexError(
                    f"{self.path}: the store was made with {key}={mine}, {other} has {key}="
                    f"{theirs}; gradients of the two cannot be compared, use another store"
                )

    def require_same_origin(self, origin: dict[str, Any]) -> None:
        if self.origin != origin:
            raise GradexError(
                f"{self.path}: the store was made from other tasks or another recipe than this "
                "meta-training's; name another --output_dir, or add to the store with --append"
            )

    def require_unchanged(self) -> None:
        """Refuse where another process has written a plan since this one read it."""
        if type(self).open(self.path).plan != self.plan:
            raise GradexError(
                f"{self.path}: another process has changed it meanwhile; run the same command again"
            )

    def save_origin(self, origin: dict[str, Any]) -> None:
        write_sealed(self.path / "origin.json", origin)

    @property
    def precondition(self) -> Float[np.ndarray, " param"] | None:
        """What the gradient of each parameter was divided by before the projection."""
        if self.space["precondition"] == "none":
            return None
        file = self.path / "precondition.npy"
        try:
            divisor = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise GradexError(
                f"{file}: cannot be read ({error}), so that nothing can be added to the store; "
                "make another one"
            ) from None
        if self.space["precondition"] != f"adam {digest(divisor)}":
            raise GradexError(
                f"{file}: not what the store was made with, so that nothing can be added to it; "
                "make another one"
            )
        return divisor

    def enter(self, side: Side, name: str, *, rows: int, data_hash: str) -> list[ShardPath]:
        """Put a source or target into the plan; returns its shards, written or not."""
        shards = -(-rows // self.shard_rows)
        self.plan[side][name] = {"rows": rows, "shards": shards, "data_hash": data_hash}
        return self.shards(side, name)

    def clear_plan(self) -> None:
        """Begin a plan anew: sources that a later run no longer has are not read."""
        self.plan = {"train": {}, "target": {}}

    def save_plan(self) -> None:
        write_sealed(self.path / "plan.json", self.plan)

    def shards(self, side: Side, name: str) -> list[ShardPath]:
        entry = self._entry(side, name)
        folder = self.path / side / encode_name(name)
        return [ShardPath(folder, index) for index in range(entry["shards"])]

    def data_hashes(self) -> dict[str, str]:
        """Source or target -> hash of the rows that its gradients were taken of."""
        entries = self.plan["train"] | self.plan["target"]
        return {name: entry["data_hash"] for name, entry in entries.items()}

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


def _require_still_to_make(path: Path, part: Path) -> None:
    """A store that came to be after this process looked for it is left as it is."""
    if (path / "manifest.json").exists():
        with suppress(OSError):  # it holds files, so that it is not what this process made
            part.rmdir()
        raise GradexError(f"{path}: another process has just made it; run the same command again")


def fingerprint(space: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()


def digest(divisor: np.ndarray) -> str:
    """What tells two preconditioners apart in the space of a store."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(divisor, np.float32).tobytes())
