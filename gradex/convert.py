"""Carry an adapter home: any kind as a plain LoRA of the original base, checked against it.

    python -m gradex.convert
    python -m gradex.convert --adapter runs/finetune/... --rank 8
    python -m gradex.convert --adapter trained/ --initial begun/ --base MODEL
    python -m gradex.convert --adapter old_bone/ --to miss

Exact are LoRA and its kin (of twice the rank where it began from a part of the base), AdaLoRA, MiSS
and VeRA; what is no product of small matrices (Bone) is factored by an SVD of its update. --rank or
--energy make any of them smaller, at an error that is told. DoRA and (IA)^3 have no LoRA of low
rank: merge them. --initial is for what peft trained on a residual: the adapter as it began. The
folder loads with peft alone; layers.csv tells the rank and the error of every layer.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gradex import runs
from gradex.adapters.bone import is_bone, write_miss
from gradex.adapters.convert import Conversion, write_lora
from gradex.adapters.factors import Target
from gradex.adapters.folder import fingerprint
from gradex.arguments import TrustArguments
from gradex.config import (
    main,
    option,
    require_fraction,
    require_left_out,
    require_positive,
)
from gradex.errors import GradexError
from gradex.reporting.csv_table import write_csv
from gradex.training.finished import Finished, find_adapter, find_finished

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments):
    adapter: str | None = option(
        None, "an adapter's folder, or a run of finetune or meta_train; default: finetune's newest"
    )
    to: Literal["lora", "miss"] = option(
        "lora", "lora: a plain LoRA of the original base; miss: a Bone adapter of peft 0.14 to "
        "0.18, under the names that peft has today"
    )  # fmt: skip
    rank: int | None = option(None, "the highest rank of a layer; default: what is exact")
    energy: float | None = option(
        None, "share of a layer's squared norm to keep; default: what is exact"
    )
    initial: str | None = option(
        None, "the adapter as it was before its training, where that took a part of the base out "
        "(peft's PiSSA, OLoRA, CorDA, LoRA-GA), or the folder of --save_init; default: the base "
        "was left as it is"
    )  # fmt: skip
    base: str | None = option(
        None, "the original base: a folder, a hub id, or demo; default: the one the adapter names"
    )
    output_dir: str | None = option(None, "the folder; default: runs/convert/UTC-TIME")

    def __post_init__(self):
        require_positive(self, "rank")
        require_fraction(self, "energy")
        if self.rank is not None and self.energy is not None:
            raise GradexError("--rank: found beside --energy, which says it too; leave one out")
        if self.to == "miss":
            why = "found with --to miss, which changes names alone; leave it out"
            require_left_out(self, ("rank", "energy", "initial", "base"), why)


def convert(config: Config) -> Path:
    """Returns the converted adapter's folder."""
    return _to_miss(config) if config.to == "miss" else _to_lora(config)


def _to_miss(config: Config) -> Path:
    adapter = find_adapter(config.adapter)
    config = replace(config, adapter=str(adapter))
    with runs.start("convert", config, output_dir=config.output_dir) as run:
        with run.whole_or_nothing():
            write_miss(adapter, run.part)
    log.info("%s: the same tensors, as a MiSS adapter", adapter)
    return run.path


def _to_lora(config: Config) -> Path:
    found = find_finished(config.adapter, base=config.base, trust=config)
    config = replace(config, adapter=str(found.adapter), base=found.base.path)
    inputs = fingerprint(found.adapter)
    with runs.start("convert", config, output_dir=config.output_dir, inputs=inputs) as run:
        with run.whole_or_nothing(), _readable(found) as adapter:
            made = write_lora(
                found.base, adapter, run.part, target=Target(config.rank, config.energy),
                initial=Path(config.initial) if config.initial else None,
            )  # fmt: skip
            _write_layers(run.part / "layers.csv", made)
    _tell(found.adapter, made)
    return run.path


@contextmanager
def _readable(found: Finished) -> Iterator[Path]:
    """The adapter's folder, or that of the same adapter as today's peft reads it."""
    if not is_bone(found.adapter):
        yield found.adapter
        return
    with tempfile.TemporaryDirectory() as folder:
        write_miss(found.adapter, Path(folder))
        yield Path(folder)


def _write_layers(file: Path, made: Conversion) -> None:
    lines = ([name, str(cut.factors.rank), cut.error] for name, cut in made.layers.items())
    write_csv(file, ["layer", "rank", "relative_error"], lines)


def _tell(adapter: Path, made: Conversion) -> None:
    ranks = [cut.factors.rank for cut in made.layers.values()]
    log.info(
        "%s: a plain LoRA on %d layers, of rank %s, in %d numbers (before: %d)", adapter,
        len(ranks), _span(ranks), made.sizes[1], made.sizes[0],
    )  # fmt: skip
    log.info("the updates' relative error is %.2g; %s", made.error, made.agreement.sentence())


def _span(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"


if __name__ == "__main__":
    raise SystemExit(main(convert, Config))
