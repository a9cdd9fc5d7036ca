"""Every kind of adapter by its name: how it is set up on a base model, and what it can do.

A kind is a config of peft's and, where the adapter begins from the base model or from rows, what
is done to each layer then. `attach` does both; `export` and `load` carry the adapter home and back.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gradex.adapters import any_peft, blocks, eva, loraga, starts
from gradex.adapters import peft_configs as configs
from gradex.adapters.beginning import Beginning
from gradex.adapters.rank_budget import require_budget
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError, unknown
from gradex.train_arguments import ALIASES, PEFT

Config = Callable[[AdapterSpec, Beginning], Any]  # -> a config of peft's; None: all weights train
Start = Callable[[nn.Module, AdapterSpec, Beginning], None]
Check = Callable[[AdapterSpec, int], None]  # refuses what cannot be, in so many steps
Fits = Callable[[blocks.Shapes, AdapterSpec], None]  # refuses a spec that does not fit the layers


@dataclass(frozen=True)
class Option:
    """A setting that one kind alone has: its type, what it is when it is not given, and a line."""

    type: type
    default: Any
    help: str
    least: float | None = None

    def read(self, text: str) -> Any:
        value = self.type(text)
        if self.least is not None and not self.least <= value < math.inf:
            raise ValueError
        return value

    @property
    def expected(self) -> str:
        least = "" if self.least is None else f" (at least {self.least:g})"
        return f"{self.type.__name__.upper()}{least}"


@dataclass(frozen=True)
class Kind:
    """`reads_rows`: the start is computed from calibration rows. `from_base`: the adapter begins
    from a part of the base's weights, which are residuals then. `learns_b`: there is a matrix B
    that LoRA+ can give a larger step. `fits` refuses a spec that the layers of the model, by their
    shapes, cannot be adapted with. `unread`: flags that mean nothing to it."""

    about: str
    config: Config
    start: Start | None = None
    check: Check | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    reads_rows: bool = False
    from_base: bool = False
    learns_b: bool = True
    dropout: bool = True
    quantised: bool = True  # works on a base in 4 bits
    conv1d: bool = True  # works on GPT-2's layers
    fits: Fits | None = None
    unread: tuple[str, ...] = ()


def _from_base(about: str, start: Start, **more: Any) -> Kind:
    """LoRA that begins from a part of the base's weights."""
    return Kind(about, configs.lora, start, from_base=True, quantised=False, **more)


ADALORA = {
    "init_r": Option(int, None, "rank at first; default: 1.5 times --lora_r, where it ends", 1.0),
    "tinit": Option(int, None, "steps before ranks go down; default: a tenth of them", 0.0),
    "tfinal": Option(int, None, "steps after ranks are settled; default: three tenths", 0.0),
    "deltaT": Option(int, None, "steps from deal to deal; default: at most 200 deals", 1.0),
    "beta1": Option(float, 0.85, "smoothing of the sensitivity"),
    "beta2": Option(float, 0.85, "smoothing of the uncertainty"),
    "orth_reg_weight": Option(float, 0.1, "weight of the orthogonality penalty in the loss", 0.0),
}

KINDS: dict[str, Kind] = {
    "lora": Kind("A drawn, B zero (Hu et al., 2021)", configs.lora),
    "rslora": Kind("scaled by alpha / sqrt(rank) (Kalajdzievski, 2023)", configs.rslora),
    "dora": Kind("direction and magnitude apart (Liu et al., 2024)", configs.dora),
    "pissa": _from_base("the largest singular components (Meng et al., 2024)", starts.pissa),
    "pissa_niter": _from_base(
        "nearly these, by power iterations", starts.pissa_niter,
        options={"niter": Option(int, 16, "power iterations", least=0.0)},
    ),
    "milora": _from_base("the smallest singular components (Wang et al., 2024)", starts.milora),
    "mid": _from_base("singular components from the middle", starts.mid),
    "olora": _from_base("the first of a QR decomposition (Buyukakyuz, 2024)", starts.olora),
    "corda_kpm": _from_base(
        "what the rows need least, to keep what they are about (Yang et al., 2024)",
        starts.corda_kpm, reads_rows=True,
    ),
    "corda_ipm": _from_base(
        "what the rows need most, to learn what they are about (Yang et al., 2024)",
        starts.corda_ipm, reads_rows=True,
    ),
    "loraga": _from_base(
        "directions of the gradient of calibration rows (Wang, Yu and Li, 2024)", loraga.start,
        options={"gamma": Option(float, 16.0, "the larger, the smaller A and B", least=1e-3)},
        reads_rows=True,
    ),
    "eva": Kind(
        "directions of calibration rows, ranks dealt out (Paischer et al., 2024)", configs.lora,
        eva.start, reads_rows=True,
        options={"rho": Option(float, 2.0, "a layer's rank is at most so many times", least=1.0)},
    ),
    "mica": Kind(
        "B holds the smallest left singular vectors, A alone is trained", configs.mica,
        learns_b=False, quantised=False,
    ),
    "vera": Kind(
        "two vectors a layer around fixed random matrices (Kopiczko et al., 2024)", configs.vera,
        learns_b=False, unread=("lora_alpha",),
    ),
    "ia3": Kind(
        "one vector a layer (Liu et al., 2022)", configs.ia3, learns_b=False, dropout=False,
        unread=("lora_r", "lora_alpha"),
    ),
    "miss": Kind(
        "one matrix shared by shards of the input (Kang and Yin, 2024)", configs.miss,
        learns_b=False, conv1d=False, fits=blocks.require_shards, unread=("lora_alpha",),
    ),
    "miss_mini": Kind(
        "MiSS whose matrix repeats along the output", configs.miss_mini,
        options={"mini_r": Option(int, 4, "columns of the matrix")}, learns_b=False, conv1d=False,
        fits=blocks.require_shards_and_tiles, unread=("lora_alpha",),
    ),
    "bone": Kind(
        "block affine: W M + M in blocks of rank x rank (Kang, 2024)", configs.bone,
        learns_b=False, dropout=False, quantised=False, conv1d=False, fits=blocks.require_blocks,
        unread=("lora_alpha",),
    ),
    "adalora": Kind(
        "triplets whose number a layer follows from what they matter (Zhang et al., 2023)",
        configs.adalora, check=require_budget, options=ADALORA,
    ),
    "full": Kind(
        "all weights of the model are trained", configs.full, learns_b=False, dropout=False,
        quantised=False, unread=("lora_r", "lora_alpha", "lora_target_modules"),
    ),
}  # fmt: skip


# What a --peft_config describes: no kind before it is given one, so that KINDS does not list it.
ANY_PEFT = Kind(
    "any adapter of peft's", any_peft.config, learns_b=False, dropout=False,
    unread=("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)  # fmt: skip


def kind_of(name: str) -> Kind:
    name = ALIASES.get(name, name)
    if name == PEFT:
        return ANY_PEFT
    if name not in KINDS:
        raise unknown("adapter", name, [*KINDS, PEFT], "--adapter")
    return KINDS[name]


def unread_flags(name: str) -> list[str]:
    """The flags of an adapter that would be read and mean nothing to this kind."""
    kind = kind_of(name)
    return [*kind.unread, *([] if kind.reads_rows else ["calib_source", "calib_rows"])]


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The kind's own settings, given as KEY=VALUE, with its defaults for the rest."""
    known = kind_of(name).options
    values = {key: option.default for key, option in known.items()}
    for word in words:
        key, _, text = word.partition("=")
        if key not in known:
            raise _no_option(name, key)
        try:
            values[key] = known[key].read(text)
        except ValueError:
            raise GradexError(
                f"--adapter_args {word}: expected {key}={known[key].expected}"
            ) from None
    return values


def _no_option(name: str, key: str) -> GradexError:
    owners = [other for other, kind in KINDS.items() if key in kind.options]
    if owners:
        return GradexError(
            f"--adapter_args {key}: found with --adapter {name}, but it is a setting of "
            f"{' and '.join(owners)}; leave it out"
        )
    known = kind_of(name).options
    if not known:
        return GradexError(f"--adapter_args {key}: {name} has no settings of its own; leave it out")
    told = "; ".join(f"{key} ({option.help})" for key, option in known.items())
    return GradexError(f"--adapter_args {key}: no setting of {name}; known are: {told}")


def require_sound(spec: AdapterSpec, *, steps: int = 0) -> None:
    """Refuse what can be told without a model; `steps` are those that are planned, 0 for none."""
    kind = kind_of(spec.kind)
    if kind.check is not None:
        kind.check(spec, steps)
    if spec.kind == PEFT:
        any_peft.require_settings(spec.options)
    if spec.dropout and not kind.dropout:
        raise GradexError(f"--lora_dropout: found {spec.dropout}, but {spec.kind} has no dropout; "
                          "say --lora_dropout 0")  # fmt: skip
