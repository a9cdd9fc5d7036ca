"""How much of a model's layers is idle, seen by its data: truncate them, measure what is lost.

    python -m gradex.decompose
    python -m gradex.decompose --model MODEL --tasks my_tasks/ --calib_source alpaca
    python -m gradex.decompose --metric context plain --discard 0 64 256 1024

The smallest singular components of every target layer are discarded: of the weight as its inputs
see it (context), scaled by the inputs' magnitudes (activation), or alone (plain). Perplexity and
output errors are those of the targets' select rows. The less a metric loses, the better it tells
what the model needs; context is how the adapters corda_kpm and corda_ipm choose.

Beside the model, the host's memory holds the weights of the layers once more, what is discarded of
them in one metric, and while they are collected the covariances: 4 in^2 bytes a layer, which are
kept in runs/covariances. The device holds what one layer needs.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.adapters.covariance_cache import contexts
from gradex.adapters.truncation import METRICS
from gradex.arguments import (
    DEFAULTS,
    DEMO_DEFAULTS,
    DataArguments,
    ModelArguments,
    TrustArguments,
    keep,
    record_of,
    recorded_settings,
)
from gradex.checks.truncations import Study, Truncations, fewest_components, with_targets
from gradex.config import main, option, require_not_negative, require_positive, with_defaults
from gradex.data.recorded import load_data
from gradex.data.sources import Sources
from gradex.errors import GradexError, unknown
from gradex.models.encoding import on_best_device
from gradex.models.load import DEMO, base_spec
from gradex.records import write_json
from gradex.reporting.decomposition import losses_by_discard, write_tables
from gradex.training.begin import calibration_batches, start_examples
from gradex.training.prepare import load_base_and_encoder, select_examples, training_examples

EIGHTHS = range(1, 8)  # discarded by default
INHERITED = ("calib_rows", "lora_target_modules", "max_length")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments):
    metric: list[str] = option(list(METRICS), "senses of small to compare")
    discard: list[int] | None = option(
        None, "how many components a layer loses, each a setting; default: in eighths of what the "
        "smallest layer has"
    )  # fmt: skip
    target: list[str] | None = option(None, "targets to measure; default: all of the tasks")
    calib_source: str | None = option(
        None, "the source whose rows tell what layers see; default: all sources"
    )
    calib_rows: int | None = option(None, "how many of its rows, drawn by the seed; default: 256")
    lora_target_modules: list[str] | None = option(
        None, "last parts of the names of the layers to truncate; default: as in meta_dir, or "
        "all-linear"
    )  # fmt: skip
    meta_dir: str | None = option(
        None, "a run of meta_train whose base model and tasks to take; default: the newest, where "
        "no model is named"
    )  # fmt: skip
    model: str | None = option(
        None, "a model to truncate: a folder, a hub id, or demo; default: that of meta_dir"
    )
    tasks: list[str] | None = option(
        None, "a folder or a list of task YAMLs or data files; default: those of meta_dir, or "
        "tasks/demo"
    )  # fmt: skip
    max_length: int | None = option(
        None, "tokens a row is cut to; default: as in meta_dir, or 512, 64 for the demo model"
    )
    bf16: bool = option(False, "load the model in bfloat16")
    seed: int = option(0, "seed of the rows that are drawn")
    output_dir: str | None = option(None, "the run's folder; default: runs/decompose/UTC-TIME")

    def __post_init__(self):
        require_positive(self, "calib_rows", "max_length")
        require_not_negative(self, "seed")
        for name in self.metric:
            if name not in METRICS:
                raise unknown("metric", name, METRICS, "--metric")
        if any(discard < 0 for discard in self.discard or []):
            raise GradexError(f"--discard: found {min(self.discard)}, expected at least 0")
        if self.meta_dir and self.model:
            raise GradexError("--meta_dir: has a base model; leave out --model, or --meta_dir")


def decompose(config: Config) -> Path:
    """Returns the run folder: decompose.csv, layers.csv, decompose.json, decompose.png."""
    config, settings = _resolved(config)
    sources = load_data(settings)
    config = replace(config, target=_targets(config, sources))
    inputs = sources.data_hashes()
    with runs.start("decompose", config, output_dir=config.output_dir, inputs=inputs) as run:
        content = _begin(config, settings, sources, run.part / "checkpoints").content()
        write_json(run.part / "decompose.json", content)
        write_tables(run.part, content)
        losses_by_discard(run.part / "decompose.png", content)
    _tell(content)
    return run.path


def _resolved(config: Config) -> tuple[Config, dict[str, Any]]:
    """Model and data: as the flags say, or as in a meta-training."""
    if config.model:
        settings = asdict(DataArguments()) | asdict(ModelArguments(config.model))
        settings |= DEMO_DEFAULTS if config.model == DEMO else DEFAULTS
    else:
        meta_dir = Path(config.meta_dir) if config.meta_dir else runs.newest("meta_train")
        config = replace(config, meta_dir=str(meta_dir))
        record = record_of(runs.read_config(meta_dir, "meta_train"))
        settings = recorded_settings(record, where=f"{meta_dir}/config.yaml")
    if settings["qlora"]:
        raise GradexError(f"{config.meta_dir}: its base is in 4 bits, and such weights cannot be "
                          "replaced; name the base with --model")  # fmt: skip
    if config.tasks:
        settings |= {"tasks": config.tasks, "target": None}
    config = with_defaults(config, {name: settings[name] for name in INHERITED})
    settings |= {"bf16": config.bf16 or settings["bf16"]} | keep(asdict(config), TrustArguments)
    return config, settings


def _targets(config: Config, sources: Sources) -> list[str]:
    for name in config.target or []:
        if name not in sources.targets:
            raise unknown("target", name, sources.targets, "--target")
    return config.target or sources.targets


def _begin(config: Config, settings: dict[str, Any], sources: Sources, folder: Path) -> Study:
    base, encoder = load_base_and_encoder(
        base_spec(settings), sources, max_length=settings["max_length"]
    )
    base = on_best_device(base)
    model, layers = with_targets(base, config.lora_target_modules)
    discards = _discards(config, layers)
    held_out = select_examples(encoder, sources, config.target)
    rows = start_examples(config.calib_source, encoder, sources)
    rows = rows or training_examples(encoder, sources, sources.trainable)[0]
    batches = partial(calibration_batches, base, encoder=encoder, seed=config.seed)
    seen = contexts(model, layers, batches(rows, count=config.calib_rows), base.family)
    everything = [example for examples in held_out.values() for example in examples]
    measured = contexts(model, layers, batches(everything, count=len(everything)), base.family)
    truncations = Truncations.of(layers, seen, measured)
    metrics = list(dict.fromkeys(config.metric))
    return Study(model, encoder, held_out, truncations, metrics, discards, folder)


def _discards(config: Config, layers: Mapping[str, Any]) -> list[int]:
    most, name = fewest_components(layers)
    if config.discard is None:
        return sorted({max(1, most * eighths // 8) for eighths in EIGHTHS})
    if max(config.discard) > most:
        raise GradexError(
            f"--discard {max(config.discard)}: {name} has only {most} components; discard fewer"
        )
    return sorted(set(config.discard))


def _tell(content: Mapping[str, Any]) -> None:
    log.info("perplexity of the intact model: %.4g", content["intact"]["perplexity"])
    for discard in content["discards"]:
        alike = [one for one in content["settings"] if one["discard"] == discard]
        told = ", ".join(f"{one['metric']} {one['perplexity']:.4g}" for one in alike)
        log.info("without the %d smallest of %d components: %s", discard, content["components"],
                 told)  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(decompose, Config))
