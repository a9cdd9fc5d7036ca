"""Adapters that were reduced after their fine-tune, as the report finds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.records import read_json

SHAPE = {"layers": list, "parameters": int, "parameters_kept": int}


def reduced_of(tunes: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The newest run of reduce of each of these fine-tunes, with what it found."""
    newest: dict[Path, tuple[Path, dict[str, Any]]] = {}
    wanted = {tune.resolve() for tune in tunes}
    for path in runs.finished("reduce"):
        results = read_json(path / "results.json", "the results of a reduction", SHAPE)
        tune = Path(results.get("run") or ".").resolve()
        if tune in wanted and "reduced" in results:
            newest[tune] = path, results
    return list(newest.values())
