"""selection.json: the chosen sources with all that `finetune` needs to train on exactly them."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gradex.errors import GradexError
from gradex.runs import read_json, write_json

FORMAT = "gradex-selection/1"


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
    format: str = field(default=FORMAT)

    def write(self, path: Path) -> Path:
        write_json(path, asdict(self))
        return path

    @classmethod
    def read(cls, path: Path) -> "Selection":
        """A selection from its file or the run folder that holds it."""
        path = path / "selection.json" if path.is_dir() else path
        content = read_json(path, "a selection that select_sources wrote")
        if content.get("format") != FORMAT:
            raise GradexError(
                f"{path}: the format is {content.get('format')}, expected {FORMAT} as "
                "select_sources writes it"
            )
        names = {f.name for f in fields(cls)}
        missing = names - set(content)
        if missing:
            raise GradexError(f"{path}: key '{sorted(missing)[0]}' is missing; select again")
        return cls(**{name: content[name] for name in names})
