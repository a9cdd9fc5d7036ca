"""The meta-training whose adapter a store's gradients were taken at.

A store knows that adapter by content alone, so that it is looked for among the runs: first in the
one that the store was made from, then in those of meta_train, the newest first; in each at its end
and at the points that were kept on the way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradex import runs
from gradex.adapters.folder import fingerprint, weight_files
from gradex.adapters.points import points_in
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.records import read_json


@dataclass(frozen=True)
class MetaTraining:
    """The folder of a run, and that of its adapter which a store belongs to."""

    folder: Path
    adapter: Path


def meta_training_of(store: GradientStore, *, otherwise: str) -> MetaTraining:
    """The meta-training of a store; `otherwise` is what a person may do where it is gone."""
    found = find_meta_training(store)
    if found is not None:
        return found
    for folder in _likely_folders(store):
        if _is_adapter(folder / "adapter"):
            raise GradexError(
                f"{folder / 'adapter'}: not the adapter that the gradients of {store.path} were "
                f"taken at; bring that one back, or {otherwise}"
            )
    raise GradexError(
        f"{store.path}: no run of meta_train here has the adapter that its gradients were taken "
        f"at; bring that run's folder back, or {otherwise}"
    )


def find_meta_training(store: GradientStore) -> MetaTraining | None:
    """The same, None where it is gone."""
    wanted = store.space.get("adapter")
    for folder in _likely_folders(store):
        for adapter in (folder / "adapter", *points_in(folder).values()):
            if _is_adapter(adapter) and fingerprint(adapter) == wanted:
                return MetaTraining(folder, adapter)
    return None


def _is_adapter(folder: Path) -> bool:
    return bool(weight_files(folder))


def _likely_folders(store: GradientStore) -> Iterator[Path]:
    for run in reversed(runs.finished("project")):
        file, what = run / "store.json", "where a run of project left its store"
        made = read_json(file, what, {"store": str})["store"]
        if Path(made).resolve() == store.path.resolve():
            yield Path(runs.read_config(run, "project")["meta_dir"])
    yield from reversed(runs.finished("meta_train"))
