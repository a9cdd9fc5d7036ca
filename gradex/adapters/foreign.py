"""Adapters that peft trained on a residual: carried home with the adapter that they began as.

    W = residual + s B0 A0,      trained elsewhere: residual + s B A

peft's PiSSA, OLoRA, CorDA and LoRA-GA change the base below the adapter. A folder of one of them
holds A and B alone, which mean nothing on the base as it was; the folder of the adapter that the
training began with holds A0 and B0.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from gradex.adapters.folder import (
    SETTINGS,
    SETTINGS_OF,
    WEIGHTS,
    has_halves,
    is_residual,
    require_adapter,
    weight_files,
)
from gradex.adapters.halves import Pair, load_on_residual, pair_keys
from gradex.adapters.residual import base_weight
from gradex.errors import GradexError
from gradex.models.load import Base, hash_files
from gradex.records import read_json

CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
SCALE = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
LEFT = 0.05  # of the part that was taken out: less is rounding


def require_whole_base(path: str) -> None:
    """Refuse a residual model, on which no adapter is one of the base as it was."""
    if is_residual(Path(path)):
        raise GradexError(
            f"--base {path}: a residual model that --save_init left; name the model as it was "
            "before, and beside it the adapter as it began with --initial"
        )


def require_own_base(adapter: Path) -> None:
    """Refuse an adapter whose base is not the one that its training was begun from."""
    init = _settings(adapter).get("init_lora_weights")
    if isinstance(init, str) and init.startswith(CHANGE_THE_BASE):
        raise GradexError(
            f"{adapter}: its init_lora_weights is {init}, which changes the base below the adapter;"
            " on the base as it was it needs the adapter that it began as: say gradex convert "
            "--initial DIR"
        )


def load_with_initial(base: Base, adapter: Path, initial: Path) -> nn.Module:
    """The base, with what the training took out of it taken out, and the trained adapter on it."""
    initial = _adapter_of(initial)
    _require_pair(adapter, initial)
    begun = load_file(initial / WEIGHTS)

    def taken(name: str, layer: Any) -> Pair:
        a, b = (begun[key] for key in pair_keys(name))
        _require_whole(layer, a, b, name=name)
        return a, b

    settings = _settings(adapter) | {"init_lora_weights": True}
    trained = load_file(adapter / WEIGHTS)
    return load_on_residual(base.model, settings, trained, taken=taken, where=adapter)


def _adapter_of(initial: Path) -> Path:
    """Also where the folder is that of --save_init, which has the adapter beside its model."""
    return initial if (initial / SETTINGS).exists() else initial / "adapter"


def _require_pair(adapter: Path, initial: Path) -> None:
    """One adapter at two times of its training."""
    for folder in (adapter, initial):
        require_adapter(folder)
        if has_halves(folder):
            raise GradexError(f"{folder}: loads on the base as it was already; leave --initial out")
    ours, theirs = _settings(adapter), _settings(initial)
    for key in ("peft_type", *SCALE):
        if ours.get(key) != theirs.get(key):
            raise GradexError(
                f"--initial {initial}: its {key} is {theirs.get(key)}, that of {adapter} is "
                f"{ours.get(key)}; expected the same adapter before its training"
            )
    if hash_files(weight_files(adapter)) == hash_files(weight_files(initial)):
        raise GradexError(
            f"--initial {initial}: the same weights as {adapter}; expected the adapter before its "
            "training"
        )
    if ours.get("peft_type") != "LORA" or ours.get("use_dora") or theirs.get("use_dora"):
        raise GradexError(f"{adapter}: --initial is for plain LoRA adapters; leave it out")


def _require_whole(layer: Any, a: Tensor, b: Tensor, *, name: str) -> None:
    """What was taken out has to be in the base: a residual has nothing left where B0 leads."""
    weight = base_weight(layer).float()
    b, a = b.to(weight), a.to(weight)
    taken = next(iter(layer.scaling.values())) * b.T @ b @ a
    if (b.T @ weight).norm() < LEFT * taken.norm():
        raise GradexError(
            f"--base: of what the adapter began as, nothing is in {name}; this is the residual "
            "model already, name the model as it was before"
        )


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / SETTINGS, SETTINGS_OF)
