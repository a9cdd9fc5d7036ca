"""selection.json: the chosen sources with all that `finetune` needs to train on exactly them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import xxhash

from gradex.arguments import recorded_settings
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.records import read_json, require_shape, write_json
from gradex.runs import newest
from gradex.selection.shares import require_shares

FORMAT = "gradex-selection/2"
SHAPE = {
    "format": str, "selected": list, "method": str, "targets": dict, "value": float,
    "base_value": float, "calibrated": bool, "scores": dict, "trace": list, "weights": dict,
    "rows": dict, "store": str, "fingerprint": str, "base": dict, "tasks": dict, "recipe": dict,
    "data": dict, "n_sources": int,
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The chosen sources in the order they were chosen, their estimate, and how it came about.

    Where `weights` says nothing, sources are mixed by their rows; otherwise each has its share of
    the training, and they sum to 1. A source that `rows` names is trained on these rows (ids) only.
    """

    selected: list[str]
    value: float
    scores: dict[str, float] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """Written by what chooses sources, read by finetune, export and report.

    `targets` are what was chosen for, each with its weight; results are told for the first.
    `value` is the estimate of the choice, a loss where `calibrated`; `base_value` the loss at the
    meta adapter.
    """

    selected: list[str]
    method: str
    targets: dict[str, float]
    value: float
    base_value: float
    calibrated: bool
    scores: dict[str, float]
    trace: list[dict[str, Any]]
    weights: dict[str, float]
    rows: dict[str, list[str]]
    store: str
    fingerprint: str
    base: dict[str, Any]
    tasks: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, str]
    n_sources: int
    format: str = FORMAT

    @property
    def target(self) -> str:
        return next(iter(self.targets))

    @property
    def identity(self) -> str:
        """Of what is trained on: sources, shares and rows."""
        key = json.dumps([self.selected, self.weights, self.rows], sort_keys=True)
        return xxhash.xxh3_128_hexdigest(key.encode())

    def write(self, path: Path) -> Path:
        write_json(path, asdict(self))
        return path

    def recorded_settings(self, *, where: str) -> dict[str, Any]:
        """Data, model and recipe that the selection was made for, checked, as one mapping."""
        return recorded_settings(asdict(self), where=where)

    @classmethod
    def read(cls, path: Path) -> "Selection":
        """A selection, checked to name only sources whose rows it knows."""
        what = f"a selection as select_sources writes it ({FORMAT})"
        content = read_json(path, what, {"format": str})
        if content["format"] != FORMAT:
            raise GradexError(f"{path}: the format is {content['format']}, expected {what}")
        require_shape(content, SHAPE, where=str(path), what=what)
        _require_names(content["selected"], where=f"{path}: `selected`")
        unknown = [name for name in content["selected"] if name not in content["data"]]
        if unknown or not content["selected"]:
            raise GradexError(
                f"{path}: found {unknown or 'nothing'} in `selected`, expected sources that `data` "
                "tells the rows of; select again"
            )
        if not content["targets"]:
            raise GradexError(f"{path}: found no target in `targets`; select again")
        _require_numbers(content["scores"], where=f"{path}: `scores`")
        _require_numbers(content["targets"], where=f"{path}: `targets`")
        if not all(0 < weight < math.inf for weight in content["targets"].values()):
            raise GradexError(f"{path}: `targets`: expected weights above 0; select again")
        for key in ("weights", "rows"):
            strange = sorted(set(content[key]).difference(content["selected"]))
            if strange:
                raise GradexError(
                    f"{path}: found '{strange[0]}' in `{key}`, which is not selected; select again"
                )
        _require_lists(content["rows"], where=str(path))
        if content["weights"]:
            require_shares(content["weights"], content["selected"], where=f"{path}: weights")
            content["weights"] = {name: float(w) for name, w in content["weights"].items()}
        return cls(**{f.name: content[f.name] for f in fields(cls)})


def _require_names(names: list[Any], *, where: str) -> None:
    for number, name in enumerate(names):
        if not isinstance(name, str) or name in names[:number]:
            raise GradexError(
                f"{where}: found {name!r:.40}, expected names of sources, each once; select again"
            )


def _require_numbers(numbers: Mapping[str, Any], *, where: str) -> None:
    for name, number in numbers.items():
        if not isinstance(number, float | int):
            raise GradexError(
                f"{where}: found {number!r:.40} for '{name}', expected a number; select again"
            )


def _require_lists(rows: Mapping[str, Any], *, where: str) -> None:
    for name, ids in rows.items():
        if not isinstance(ids, list) or not all(isinstance(row, str) for row in ids):
            raise GradexError(
                f"{where}: found {ids!r:.40} for '{name}' in `rows`, expected a list of row ids"
            )


def make_selection(
    choice: Choice,
    store: GradientStore,
    *,
    method: str,
    targets: Mapping[str, float],
    calibrated: bool = False,
) -> Selection:
    """A choice among the store's sources, with what the store knows of its rows and its making."""
    hashes = store.data_hashes()
    losses = {name: store.target(name, "select").table["loss"].mean() for name in targets}
    total = sum(targets.values())
    return Selection(
        **vars(choice),
        method=method,
        targets=dict(targets),
        base_value=float(sum(weight * losses[name] for name, weight in targets.items()) / total),
        calibrated=calibrated,
        store=str(store.path),
        fingerprint=store.fingerprint,
        data={name: hashes[name] for name in [*choice.selected, *targets]},
        n_sources=len(store.sources),
        **store.origin,
    )


def selection_file(place: str | None) -> Path:
    """The named selection, a file or the run folder that holds it, or that of the newest run."""
    path = Path(place) if place else newest("select_sources")
    return path / "selection.json" if path.is_dir() else path
