"""Shards: the files of a gradient store, each written once, whole, by one writer.

    shard-00003.npy          (rows, dim), C order: np.load(path, mmap_mode="r") reads it
    shard-00003.rows.npy     structured: id, split, loss, margin, n_tokens, grad_norm, scale, ok
    shard-00003.margin.npy   and .margin.rows.npy: the margin's gradients where both are kept
    shard-00003.features.npy (rows, hidden), half floats: with --features, the rows' hidden states
    shard-00003.json         the receipt, written last: it is there, so the shard is complete

On a CPU a shard's bytes depend on its rows, the model and the projector alone. The receipt
therefore holds no time and no host: two undisturbed runs leave the same bytes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Shaped

from gradex.errors import GradexError
from gradex.records import read_sealed, replacing, write_sealed

ROW_TYPE = np.dtype(
    [
        ("id", "S32"),
        ("split", "S6"),
        ("loss", "<f4"),
        ("margin", "<f4"),
        ("n_tokens", "<i4"),
        ("grad_norm", "<f4"),
        ("scale", "<f4"),
        ("ok", "?"),
    ]
)

LEAST_NORM = 1e-15  # float32 loses the squares of smaller numbers
FEATURES = ".features"  # the ending of what has no table of its own
Parts = dict[str, tuple[np.ndarray, ...]]  # ending -> gradients and their table, or features
STORED_TYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "int8": np.dtype("i1")}
MEND = "run project again to redo the shard; `gradex doctor` shows what is wrong"
RECEIPT = {"rows": int, "rows_hash": str, "files": dict, "left_out": dict, "bad": dict}


@dataclass(frozen=True)
class ShardPath:
    """Where a shard lies: a folder and a number."""

    folder: Path
    index: int

    def file(self, ending: str) -> Path:
        return self.folder / f"shard-{self.index:05d}{ending}"

    @property
    def receipt(self) -> Path:
        return self.file(".json")


@dataclass(frozen=True)
class Faults:
    """Row id -> reason: rows without a label to learn, and rows whose gradient is not finite."""

    left_out: dict[str, str]
    bad: dict[str, str]


def quantise(
    gradients: Float[np.ndarray, "row dim"], dtype: str
) -> tuple[Shaped[np.ndarray, "row dim"], Float[np.ndarray, " row"]]:
    """Gradients in the store's dtype and the scale a row: stored * scale gives them back.

    Half floats would lose tiny gradients and overflow on large ones, and bytes hold 255 levels, so
    that each row is divided by its largest entry first.
    """
    if dtype == "float32":
        return gradients.astype(np.float32), np.ones(len(gradients), np.float32)
    scale = np.abs(gradients).max(axis=1, initial=0).astype(np.float32)
    scale[scale == 0] = 1
    if dtype == "float16":
        return (gradients / scale[:, None]).astype(np.float16), scale
    scale = np.maximum(scale / 127, np.finfo(np.float32).tiny)
    return np.rint(gradients / scale[:, None]).clip(-127, 127).astype(np.int8), scale


def write_shard(
    path: ShardPath,
    parts: Parts,
    *,
    faults: Faults,
    versions: dict[str, str],
) -> dict:
    """Write (gradients, rows) under each name ending ("" or ".margin") and features under theirs,
    then the receipt."""
    path.folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for ending, arrays in parts.items():
        for suffix, array in zip((".npy", ".rows.npy"), arrays, strict=False):
            file = path.file(f"{ending}{suffix}")
            with replacing(file) as stream:
                np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
            files[file.name] = sha256(file)
    rows = parts[""][1]
    key = rows_hash(rows["id"].astype(str).tolist(), rows["split"].astype(str).tolist())
    receipt = {"rows": len(rows), "rows_hash": key, "files": files}
    receipt |= {"left_out": faults.left_out, "bad": faults.bad, "versions": versions}
    write_sealed(path.receipt, receipt)
    return receipt


def rows_hash(ids: Sequence[str], splits: Sequence[str]) -> str:
    """Which rows a shard holds, and on which side of the split each is."""
    lines = [f"{split}:{row_id}" for row_id, split in zip(ids, splits, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def why_incomplete(path: ShardPath, key: str) -> str | None:
    """What keeps a shard from being the rows of `key` as its receipt says, if anything."""
    if not path.receipt.exists():
        return "not there yet"
    try:
        receipt = read_receipt(path)
    except GradexError as error:
        return str(error)
    if receipt["rows_hash"] != key:
        return f"{path.receipt}: of other rows"
    return next(damages(path, receipt), None)


def damages(path: ShardPath, receipt: dict) -> Iterator[str]:
    """The files of a shard that are not as its receipt says."""
    for name, digest in receipt["files"].items():
        file = path.folder / Path(name).name
        if not file.is_file():
            yield f"{file}: missing"
        elif sha256(file) != digest:
            yield f"{file}: its bytes are not those of its receipt"


def read_receipt(path: ShardPath) -> dict:
    if not path.receipt.exists():
        raise GradexError(
            f"{path.receipt}: missing, so the shard is not complete; run project again to finish "
            "the store"
        )
    return read_sealed(path.receipt, "a shard's receipt (project redoes a damaged one)", RECEIPT)


def read_gradients(file: Path, *, rows: int, dim: int, dtype: str) -> Shaped[np.ndarray, "row dim"]:
    """A shard's gradients as stored, memory-mapped."""
    array = _read_array(file)
    if array.shape != (rows, dim) or array.dtype != STORED_TYPES[dtype]:
        raise GradexError(
            f"{file}: found {array.dtype} of shape {array.shape}, expected {dtype} of shape "
            f"{(rows, dim)}; {MEND}"
        )
    return array


def read_features(file: Path, *, rows: int) -> Float16[np.ndarray, "row hidden"]:
    """A shard's features, memory-mapped."""
    array = _read_array(file)
    if array.ndim != 2 or len(array) != rows or array.dtype != np.float16:
        raise GradexError(
            f"{file}: found {array.dtype} of shape {array.shape}, expected float16 of {rows} rows; "
            f"{MEND}"
        )
    return array


def read_table(file: Path, *, rows: int) -> np.ndarray:
    """What is known of a shard's rows."""
    array = _read_array(file)
    if array.shape != (rows,) or array.dtype != ROW_TYPE:
        raise GradexError(f"{file}: not the table of {rows} rows that its receipt tells of; {MEND}")
    return np.array(array)


def _read_array(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GradexError(f"{file}: not a readable array ({error}); {MEND}") from None


def sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
