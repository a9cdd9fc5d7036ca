"""selection.json: the chosen sources with all that `finetune` needs to train on exactly them."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gradex.arguments import recorded_settings
from gradex.errors import GradexError
from gradex.records import read_json, write_json
from gradex.runs import newest

FORMAT = "gradex-selection/1"
SHAPE = {
    "format": str, "selected": list, "method": str, "target": str, "value": float,
    "base_value": float, "scores": dict, "trace": list, "store": str, "fingerprint": str,
    "base": dict, "tasks": dict, "recipe": dict, "data": dict, "n_sources": int,
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Written by select_sources, read by finetune, export and report."""

    selected: list[str]
    method: str
    target: str
    value: float
    base_value: float
    scores: dict[str, float]
    trace: list[dict[str, Any]]
    store: str
    fingerprint: str
    base: dict[str, Any]
    tasks: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, str]
    n_sources: int
    format: str = FORMAT

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
        content = read_json(path, what, SHAPE)
        if content["format"] != FORMAT:
            raise GradexError(f"{path}: the format is {content['format']}, expected {what}")
        unknown = [name for name in content["selected"] if name not in content["data"]]
        if unknown or not content["selected"]:
            raise GradexError(
                f"{path}: found {unknown or 'nothing'} in `selected`, expected sources that `data` "
                "tells the rows of; select again"
            )
        return cls(**{f.name: content[f.name] for f in fields(cls)})


def selection_file(place: str | None) -> Path:
    """The named selection, a file or the run folder that holds it, or that of the newest run."""
    path = Path(place) if place else newest("select_sources")
    return path / "selection.json" if path.is_dir() else path
