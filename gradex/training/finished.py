"""Where a finished adapter lies, and which base model it is of."""

from dataclasses import dataclass
from pathlib import Path

from gradex import runs
from gradex.adapters.folder import SETTINGS, SETTINGS_OF, weight_files
from gradex.arguments import TrustArguments
from gradex.config import read_yaml
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, stored_dtype
from gradex.records import read_json

BELOW_A_RUN = 3  # runs/.../points/10: how far above an adapter its run is looked for


@dataclass(frozen=True)
class Finished:
    """An adapter's folder and how to load its base, in the dtype that its files have."""

    adapter: Path
    base: BaseSpec


def find_finished(place: str | None, *, base: str | None, trust: TrustArguments) -> Finished:
    """As `find_adapter` does, with its base."""
    folder = find_adapter(place)
    spec = BaseSpec(
        base or _base_of(folder),
        trust_remote_code=trust.trust_remote_code,
        allow_pickle=trust.allow_pickle,
    )
    return Finished(folder, stored_dtype(spec))


def find_adapter(place: str | None) -> Path:
    """The adapter of a folder, or of a run; None: that of the newest run of finetune."""
    return _adapter_in(Path(place) if place else runs.newest("finetune"))


def _adapter_in(place: Path) -> Path:
    if (place / "ensemble.json").is_file():
        members = ", ".join(sorted(path.name for path in (place / "adapters").glob("*")))
        raise GradexError(
            f"{place}: an ensemble mixes the probabilities of several adapters, which no single "
            f"set of weights can; name one of them in {place / 'adapters'}: {members}"
        )
    for folder in (place, place / "adapter"):
        if (folder / SETTINGS).exists() or weight_files(folder):
            return folder
    raise GradexError(
        f"{place}: neither an adapter's folder nor a finished run of finetune or meta_train"
    )


def _base_of(folder: Path) -> str:
    """As the adapter's settings say, or, of a model all of whose weights were trained, its run."""
    if (folder / SETTINGS).exists():
        named = read_json(folder / SETTINGS, SETTINGS_OF).get("base_model_name_or_path")
    else:
        named = _base_of_run(folder)
    if not isinstance(named, str) or not named:
        raise GradexError(f"{folder}: it is not recorded which base it is of; say --base MODEL")
    return named


def _base_of_run(folder: Path) -> str | None:
    above = [folder, *folder.absolute().parents][: BELOW_A_RUN + 1]
    config = next(
        (place / "config.yaml" for place in above if (place / "config.yaml").exists()), None
    )
    settings = read_yaml(config) if config else {}
    if settings.get("selection"):
        what = "the selection that the run was trained on (or say --base MODEL)"
        chosen = read_json(Path(str(settings["selection"])), what, {"base": dict})
        settings = chosen["base"]
    return settings.get("model_name_or_path")
