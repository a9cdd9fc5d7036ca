"""The sources again: by the settings that an earlier stage recorded, and as that stage saw them."""

from typing import Any

from gradex.data.sources import Sources, SplitRule, load_sources
from gradex.errors import GradexError


def load_data(settings: dict[str, Any]) -> Sources:
    """The sources of a run's settings, split as its rule says."""
    return load_sources(
        settings["tasks"],
        settings["target"],
        rule=SplitRule(held_out=settings["held_out"], seed=settings["split_seed"]),
        allow_pickle=settings["allow_pickle"],
    )


def require_same_data(sources: Sources, recorded: dict[str, str], *, where: str) -> None:
    """Refuse sources whose rows are not those that an earlier stage saw."""
    for name, data_hash in recorded.items():
        if name not in sources:
            raise GradexError(f"{where}: knows the source '{name}', which --tasks no longer has")
        if sources[name].data_hash != data_hash:
            raise GradexError(
                f"{sources[name].path}: the rows of '{name}' are not those that {where} was made "
                "from; bring the file back, or start again from meta_train"
            )
