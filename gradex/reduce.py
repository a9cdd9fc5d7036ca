"""Keep of a trained LoRA, in every layer, only the components that fit the base: a smaller adapter.

    python -m gradex.reduce
    python -m gradex.reduce --adapter runs/finetune/... --step 0.05
    python -m gradex.reduce --adapter DIR --select_method minor

This is NoRM, made for adapters that are merged one after the other. It reads no data. An adapter of
a fine-tune is measured again, beside the one that it was.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from gradex import runs
from gradex.adapters.folder import fingerprint, load_all
from gradex.adapters.norm import Method, Rule, Search
from gradex.adapters.reduced import ReducedLayer, Scale, reduce_adapter, require_lora
from gradex.adapters.residual import ADAPTER
from gradex.arguments import TrustArguments
from gradex.config import (
    main,
    option,
    read_yaml,
    require_fraction,
    require_not_negative,
    require_positive,
)
from gradex.data.tokens import Encoder, Family
from gradex.errors import GradexError, unknown
from gradex.models.encoding import on_best_device
from gradex.models.load import Base, BaseSpec, base_spec, load_base
from gradex.records import read_json, require_shape, write_json, write_text
from gradex.reporting.cards import adapter_card
from gradex.reporting.csv_table import write_csv
from gradex.reporting.outcomes import outcome
from gradex.selection.chosen import Chosen, read_chosen
from gradex.training.finished import find_adapter, find_finished
from gradex.training.prepare import load_base_and_encoder, test_scores

# What a fine-tune says of itself that holds for its reduced adapter, too.
INHERITED = ("target", "method", "selected", "choice", "mixer", "store", "n_sources", "seed",
             "recipe")  # fmt: skip
RESULTS_OF = "the results of a fine-tune"
SHAPE = {"target": str, "method": str, "selected": list, "targets": dict}
MEASURED = {"base": {"loss": float}, "tuned": {"loss": float}}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments):
    adapter: str | None = option(
        None, "an adapter folder, or the run that left it; default: finetune's newest run"
    )
    base: str | None = option(
        None, "the base model, where it lies elsewhere now; default: as the adapter names it"
    )
    step: float = option(0.1, "ranks that are tried lie this share of the rank apart")
    range_start: int = option(1, "the lowest of them, in steps; from 1 / step on all is kept")
    scale: Scale = option(
        "preserve", "preserve: a component that is kept adds what it did; authors: B A is added "
        "without alpha / rank, as the published code merges it (alpha 32 at rank 16 is halved)"
    )  # fmt: skip
    search: Search = option(
        "exact", "exact: the largest singular components; random: the published randomised sketch"
    )
    select_method: Method = option(
        "lora", "lora: NoRM's; to compare: random and minor keep components by chance or the "
        "smallest, l2 and cosine as many as bring the update nearest to the weight"
    )  # fmt: skip
    seed: int = option(0, "seed of what is random: --search random, --select_method random")
    output_dir: str | None = option(None, "the run's folder; default: runs/reduce/UTC-TIME")

    def __post_init__(self):
        require_fraction(self, "step")
        require_positive(self, "range_start")
        require_not_negative(self, "seed")
        if self.search == "random" and self.select_method in ("random", "minor"):
            raise GradexError(
                f"--select_method {self.select_method}: found with --search random, whose sketch "
                "holds the largest components alone; say --search exact"
            )

    @property
    def rule(self) -> Rule:
        return Rule(self.step, self.range_start, self.search, self.select_method)


@dataclass(frozen=True)
class FineTune:
    """The run that an adapter came from: what it was trained on, and what it says of itself."""

    run: Path
    chosen: Chosen
    results: dict[str, Any]


def reduce(config: Config) -> Path:
    """Returns the run folder: adapter/, layers.csv, results.json, config.yaml."""
    folder = find_adapter(config.adapter)
    require_lora(folder)
    run = _run_of(folder)
    tune = _fine_tune(run, config) if run else None
    spec = _base(config, folder, tune)
    config = replace(config, adapter=str(folder), base=spec.path)
    inputs = fingerprint(folder)
    with runs.start("reduce", config, output_dir=config.output_dir, inputs=inputs) as made:
        base, encoder = _loaded(spec, tune)
        model = load_all(base, {ADAPTER: folder})
        out = made.part / "adapter"
        layers = reduce_adapter(
            model, folder, out, rule=config.rule, scale=config.scale, seed=config.seed
        )
        _tell(layers, config)
        # On the base as it was, the folder as whoever loads it will find it.
        reduced = load_all(replace(base, model=model.unload()), {ADAPTER: out})
        results = _results(layers, config, tune)
        if tune and encoder:
            results |= _measured(reduced, encoder, tune)
            write_text(out / "README.md", _card(results, spec, base.family, made))
        write_csv(made.part / "layers.csv", [*results["layers"][0]], _lines(layers))
        write_json(made.part / "results.json", results)
    return made.path


def _run_of(folder: Path) -> Path | None:
    """The run of finetune that the adapter is of."""
    run = folder.parent
    if folder.name != "adapter" or not (run / "config.yaml").is_file():
        return None
    return run if read_yaml(run / "config.yaml").get("stage") == "finetune" else None


def _fine_tune(run: Path, config: Config) -> FineTune:
    settings, file = runs.read_config(run, "finetune"), run / "results.json"
    results = read_json(file, RESULTS_OF, SHAPE)
    require_shape(
        settings, {"selection": str}, where=f"{run}/config.yaml", what="the config of a fine-tune"
    )
    chosen = read_chosen(settings["selection"], allow_pickle=config.allow_pickle)
    for name in (results["target"], *results["targets"]):
        if name not in results["targets"] or name not in chosen.sources.targets:
            raise unknown("target", name, chosen.sources.targets, str(file))
        require_shape(results["targets"][name], MEASURED, where=f"{file}: {name}", what=RESULTS_OF)
    return FineTune(run, chosen, results)


def _base(config: Config, folder: Path, tune: FineTune | None) -> BaseSpec:
    if tune is None:
        return find_finished(str(folder), base=config.base, trust=config).base
    trust = {"trust_remote_code": config.trust_remote_code, "allow_pickle": config.allow_pickle}
    spec = base_spec(tune.chosen.recorded | trust)
    return replace(spec, path=config.base or spec.path)


def _loaded(spec: BaseSpec, tune: FineTune | None) -> tuple[Base, Encoder | None]:
    if tune is None:
        return on_best_device(load_base(spec)), None
    length = tune.chosen.recorded["max_length"]
    base, encoder = load_base_and_encoder(spec, tune.chosen.sources, max_length=length)
    return on_best_device(base), encoder


def _results(
    layers: Sequence[ReducedLayer], config: Config, tune: FineTune | None
) -> dict[str, Any]:
    """What the fine-tune says of itself, and what has become of its layers."""
    of_run = {key: tune.results.get(key) for key in INHERITED} if tune else {}
    return of_run | {
        "run": str(tune.run) if tune else None,
        "adapter": config.adapter,
        "rule": asdict(config.rule),
        "scale": config.scale,
        "parameters": sum(line.parameters for line in layers),
        "parameters_kept": sum(line.parameters_kept for line in layers),
        "layers": [asdict(line) for line in layers],
    }


def _lines(layers: Sequence[ReducedLayer]) -> list[list[Any]]:
    """Counts as they are: the table rounds numbers."""
    values = (asdict(line).values() for line in layers)
    return [[str(value) if isinstance(value, int) else value for value in line] for line in values]


def _measured(model: nn.Module, encoder: Encoder, tune: FineTune) -> dict[str, Any]:
    """Every target's scores, those of the base and of the unreduced adapter as finetune has
    measured them."""
    scores = test_scores(model, tune.chosen.sources, encoder, [*tune.results["targets"]])
    both = {
        name: measured | {"reduced": scores[name]}
        for name, measured in tune.results["targets"].items()
    }
    for name, measured in both.items():
        log.info(
            "%s: test loss %.3f; unreduced %.3f, the base model %.3f", name,
            *(measured[key]["loss"] for key in ("reduced", "tuned", "base")),
        )  # fmt: skip
    return {**both[tune.results["target"]], "targets": both}


def _tell(layers: Sequence[ReducedLayer], config: Config) -> None:
    before, after = (sum(getattr(line, key) for line in layers) for key in
                     ("parameters", "parameters_kept"))  # fmt: skip
    untouched = sum(line.kept == line.rank for line in layers)
    log.info(
        "kept %d of %d parameters (%.0f%%); of %d layers %d as they were; ranks %d to %d", after,
        before, 100 * after / before, len(layers), untouched, min(line.kept for line in layers),
        max(line.kept for line in layers),
    )  # fmt: skip
    if config.scale == "authors":
        log.info("--scale authors: the update is B A without alpha / rank, as it is published")


def _card(results: Mapping[str, Any], spec: BaseSpec, family: Family, run: runs.Run) -> str:
    count = len(results["selected"])
    named = {"base model": "base", "unreduced adapter": "tuned", "this adapter": "reduced"}
    return adapter_card(
        base=spec.path,
        family=family,
        target=results["target"],
        selected=results["selected"],
        method=results["method"],
        results=[
            outcome(name, [results[key]], sources=0 if key == "base" else count)
            for name, key in named.items()
        ],
        command=run.command,
        versions=runs.versions(),
    )


if __name__ == "__main__":
    raise SystemExit(main(reduce, Config))
