"""A selection with the rows it stands for: what is trained on, or handed on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradex.data.recorded import load_data, only_rows, require_same_data
from gradex.data.sources import Sources
from gradex.selection.choice import Selection, selection_file


@dataclass(frozen=True)
class Chosen:
    """A selection, its file, the settings it was made with, the sources as it was made from them,
    and the same with the training rows alone that it names."""

    path: Path
    selection: Selection
    recorded: dict[str, Any]
    sources: Sources
    trained: Sources


def read_chosen(place: str | None, *, allow_pickle: bool) -> Chosen:
    """The named selection, or that of the newest run; rows that have changed are refused."""
    path = selection_file(place)
    selection = Selection.read(path)
    recorded = selection.recorded_settings(where=str(path))
    sources = load_data(recorded | {"allow_pickle": allow_pickle})
    require_same_data(sources, selection.data, where=selection.store)
    trained = only_rows(sources, selection.rows, where=str(path))
    return Chosen(path, selection, recorded, sources, trained)
