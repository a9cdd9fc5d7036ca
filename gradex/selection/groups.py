"""Groups of sources: groups.json, and a selection for each group beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradex.data.recorded import require_same_data
from gradex.data.sources import Sources
from gradex.errors import GradexError, unknown
from gradex.records import read_json, require_shape, write_json
from gradex.selection.choice import Selection

FORMAT = "gradex-groups/1"
WHAT = f"groups of sources as `group --sources` writes them ({FORMAT})"
SHAPE = {"format": str, "groups": list, "store": str}
GROUP_SHAPE = {"sources": list, "selection": str}


@dataclass(frozen=True)
class Groups:
    """Two groups or more, a selection each, all of one store and for the same targets."""

    path: Path
    selections: tuple[Selection, ...]

    def __len__(self) -> int:
        return len(self.selections)

    @property
    def store(self) -> str:
        return self.selections[0].store

    @property
    def targets(self) -> list[str]:
        return list(self.selections[0].targets)

    @property
    def members(self) -> list[list[str]]:
        """The sources of each group."""
        return [selection.selected for selection in self.selections]

    @property
    def sources(self) -> list[str]:
        """Those of all groups together."""
        return list(dict.fromkeys(name for members in self.members for name in members))

    def recorded_settings(self) -> dict[str, Any]:
        """Data, model and recipe that the groups were made for, checked, as one mapping."""
        return self.selections[0].recorded_settings(where=str(self.path))

    def require_of(self, sources: Sources) -> None:
        """Refuse sources that have other rows than the store, or lack a target."""
        for selection in self.selections:
            require_same_data(sources, selection.data, where=selection.store)
        for target in self.targets:
            if target not in sources.targets:
                raise unknown("target", target, sources.targets, str(self.path))


def write_groups(folder: Path, selections: Sequence[Selection]) -> None:
    """What `read_groups` reads."""
    entries = []
    for number, selection in enumerate(selections):
        file = f"group-{number}/selection.json"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        selection.write(folder / file)
        entries.append({"sources": selection.selected, "selection": file})
    content = {"format": FORMAT, "groups": entries, "store": selections[0].store}
    write_json(folder / "groups.json", content)


def read_groups(place: Path) -> Groups:
    """The groups of a run folder, or of its groups.json."""
    path = place / "groups.json" if place.is_dir() else place
    content = read_json(path, WHAT, SHAPE)
    if content["format"] != FORMAT:
        raise GradexError(f"{path}: the format is {content['format']}, expected {WHAT}")
    for number, group in enumerate(content["groups"]):
        require_shape(group, GROUP_SHAPE, where=f"{path}: group {number}", what=WHAT)
    files = [path.parent / group["selection"] for group in content["groups"]]
    if len(files) < 2:
        raise GradexError(
            f"{path}: groups found: {len(files)}, expected two or more, each for an adapter of its "
            "own; for a single adapter say --selection"
        )
    selections = [Selection.read(file) for file in files]
    for file, selection, group in zip(files, selections, content["groups"], strict=True):
        _require_fit(file, selection, group["sources"], content, first=selections[0])
    return Groups(path, tuple(selections))


def _require_fit(
    file: Path,
    selection: Selection,
    sources: list[Any],
    content: Mapping[str, Any],
    *,
    first: Selection,
) -> None:
    """Refuse a selection that is not the group's, or not trained on like the others."""
    if (selection.store, selection.fingerprint) != (content["store"], first.fingerprint):
        raise GradexError(
            f"{file}: made from {selection.store}, but its groups are those of "
            f"{content['store']} as it was for the first group; run group again"
        )
    if selection.selected != sources:
        raise GradexError(
            f"{file}: its sources are not those that groups.json names for it; run group again"
        )
    if list(selection.targets) != list(first.targets):
        raise GradexError(
            f"{file}: its targets are {', '.join(selection.targets)}, those of the first group "
            f"{', '.join(first.targets)}; run group again"
        )
    if selection.weights or selection.rows:
        raise GradexError(
            f"{file}: found shares or single rows, an ensemble's adapters are trained on all rows "
            "of their groups; leave `weights` and `rows` empty"
        )
