"""Fine-tune the base model on a selection: a peft adapter, measured on the targets' test rows.

    python -m gradex.finetune
    python -m gradex.finetune --selection runs/weigh/... --max_steps 500
    python -m gradex.finetune --mixer pareto --mix_every 50

Trained on are the rows that the selection names, by its shares where it has some. A mixer solves
for the shares again and again while training, from gradients of the model as it is then.
"""

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from gradex import runs
from gradex.adapters.spec import export
from gradex.arguments import TrainArguments, TrustArguments, combined, keep
from gradex.config import main, option, require_positive, with_defaults
from gradex.data.recorded import load_data, only_rows, require_same_data
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, Example, Family
from gradex.errors import GradexError, unknown
from gradex.models.encoding import on_best_device
from gradex.records import write_json
from gradex.reporting.cards import adapter_card
from gradex.reporting.outcomes import outcome
from gradex.reporting.shares import write_shares
from gradex.selection.choice import Selection, selection_file
from gradex.selection.shares import Shares
from gradex.training.fit import fit
from gradex.training.mixer import Mixing, ParetoMixer, target_examples
from gradex.training.mixture import Mixture
from gradex.training.prepare import (
    load_base_and_encoder,
    source_examples,
    test_scores,
)
from gradex.training.recipe import make_recipe, with_steps

RECIPE_KEYS = [field.name for field in fields(TrainArguments)]
MIXER_DEFAULTS = {"mix_every": 50, "mix_rows": 16}
MIXER_FLAGS = (*MIXER_DEFAULTS, "target", "target_unlabelled")
Measured = dict[str, dict[str, float]]  # target -> loss (and metric) on its test rows
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainArguments, TrustArguments):
    selection: str | None = option(None, "a selection.json; default: the newest run's")
    mixer: Literal["none", "pareto"] = option(
        "none", "pareto: solve for the sources' shares while training; none: keep the selection's"
    )
    mix_every: int | None = option(
        None, "optimizer steps from one solve of the mixer to the next; default: 50"
    )
    mix_rows: int | None = option(
        None, "rows of a source that the mixer takes gradients of at a solve; default: 16"
    )
    target: str | None = option(
        None, "the target whose select rows the mixer goes by; default: the selection's first"
    )
    target_unlabelled: bool = option(
        False, "the mixer reads no labels of the target: sure and varied predictions are its aim"
    )
    output_dir: str | None = option(None, "the run's folder; default: runs/finetune/UTC-TIME")

    def __post_init__(self):
        TrainArguments.__post_init__(self)
        require_positive(self, "mix_every", "mix_rows")
        given = [flag for flag in MIXER_FLAGS if getattr(self, flag)]
        if self.mixer == "none" and given:
            raise GradexError(
                f"--{given[0]}: found without a mixer, which alone reads it; say --mixer pareto, "
                "or leave it out"
            )


@dataclass(frozen=True)
class Job:
    """What to train on, what to measure, and how. `chosen` are the sources with the selection's
    rows alone."""

    selection: Selection
    sources: Sources
    chosen: Sources
    config: Config
    settings: dict[str, Any]

    @property
    def targets(self) -> list[str]:
        """Those to measure: the selection's, its first before the others, and the mixer's."""
        own = [self.config.target] if self.config.target else []
        return list(dict.fromkeys([*self.selection.targets, *own]))


def finetune(config: Config) -> Path:
    """Returns the run folder: adapter/, results.json, curve.json, config.yaml; with a mixer also
    shares.csv and shares.png."""
    path = selection_file(config.selection)
    selection = Selection.read(path)
    recorded = selection.recorded_settings(where=str(path))
    sources = load_data(recorded | {"allow_pickle": config.allow_pickle})
    require_same_data(sources, selection.data, where=selection.store)
    chosen = only_rows(sources, selection.rows, where=str(path))
    config = _with_mixer(replace(config, selection=str(path)), selection)
    rows = sum(len(chosen[name].rows["train"]) for name in selection.selected)
    config = with_steps(config, rows=rows, batches=recorded)
    config = with_defaults(config, keep(recorded, TrainArguments))
    job = Job(selection, sources, chosen, config, combined(recorded, config))
    _require_targets(job)
    inputs = asdict(selection)
    with runs.start("finetune", config, output_dir=config.output_dir, inputs=inputs) as run:
        _one_adapter(job, run)
    return run.path


def _with_mixer(config: Config, selection: Selection) -> Config:
    if config.mixer == "none":
        return config
    return with_defaults(config, MIXER_DEFAULTS | {"target": selection.target})


def _require_targets(job: Job) -> None:
    for name in job.targets:
        if name not in job.sources.targets:
            where = "--target" if name == job.config.target else str(job.config.selection)
            raise unknown("target", name, job.sources.targets, where)


def _one_adapter(job: Job, run: runs.Run) -> None:
    recipe = make_recipe(job.settings)
    base, encoder = load_base_and_encoder(
        recipe.base, job.sources, max_length=job.settings["max_length"]
    )
    base = on_best_device(base)
    before = test_scores(base.model, job.sources, encoder, job.targets)
    examples, _ = source_examples(encoder, job.chosen, job.selection.selected)
    mixture = _mixture(job, examples)
    model, losses = fit(
        recipe,
        base,
        examples=[example for found in examples.values() for example in found],
        encoder=encoder,
        folder=run.part,
        name="fine-tuning",
        mixture=mixture,
        mixer=_mixer(job, examples, encoder),
    )
    model = on_best_device(replace(base, model=model)).model
    after = test_scores(model, job.sources, encoder, job.targets)
    results = _results(job, before, after) | {"shares": _mean_shares(mixture, recipe.max_steps)}
    _tell(results, n_sources=job.selection.n_sources)
    write_json(run.part / "results.json", results)
    write_json(run.part / "curve.json", {"loss": losses})
    if job.config.mixer != "none":
        write_shares(run.part, mixture.history, steps=recipe.max_steps)
    card = _card(results, base=recipe.base.path, family=base.family, command=run.command)
    export(model, run.part / "adapter", base_path=recipe.base.source, card=card)


def _mixture(job: Job, examples: dict[str, list[Example]]) -> Mixture | None:
    """None where all rows are drawn alike."""
    shares = job.selection.weights
    if not shares and job.config.mixer == "none":
        return None
    mixture = Mixture({name: len(found) for name, found in examples.items()})
    if shares:
        mixture.set_shares(0, shares)
    return mixture


def _mean_shares(mixture: Mixture | None, steps: int) -> Shares:
    return mixture.mean_shares(steps) if mixture else {}


def _mixer(job: Job, examples: dict[str, list[Example]], encoder: Encoder) -> ParetoMixer | None:
    config = job.config
    if config.mixer == "none":
        return None
    labelled = not config.target_unlabelled
    target = target_examples(encoder, job.sources[config.target], labelled=labelled)
    return ParetoMixer(
        Mixing(examples, target, every=config.mix_every, rows=config.mix_rows, labelled=labelled)
    )


def _results(job: Job, before: Measured, after: Measured) -> dict[str, Any]:
    """Those of the first target stand on their own, and all of them under `targets`."""
    selection = job.selection
    return {
        "target": selection.target,
        "method": selection.method,
        "selected": selection.selected,
        "choice": selection.identity,
        "mixer": job.config.mixer,
        "weights": selection.weights,
        "rows": {name: len(ids) for name, ids in selection.rows.items()},
        "store": selection.store,
        "seed": job.settings["seed"],
        "recipe": {key: job.settings[key] for key in RECIPE_KEYS if key != "seed"},
        "base": before[selection.target],
        "tuned": after[selection.target],
        "targets": {name: {"base": before[name], "tuned": after[name]} for name in job.targets},
    }


def _tell(results: dict[str, Any], *, n_sources: int) -> None:
    log.info(
        "fine-tuned on %d of %d sources (%s), seed %d", len(results["selected"]), n_sources,
        results["method"], results["seed"],
    )  # fmt: skip
    for name, measured in results["targets"].items():
        log.info(
            "%s: test %s; the base model: %s", name, _told(measured["tuned"]),
            _told(measured["base"]),
        )  # fmt: skip


def _told(scores: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())


def _card(results: dict[str, Any], *, base: str, family: Family, command: str) -> str:
    selected = results["selected"]
    return adapter_card(
        base=base,
        family=family,
        target=results["target"],
        selected=selected,
        method=results["method"],
        shares=results["shares"],
        results=[
            outcome("base model", [results["base"]], sources=0),
            outcome("this adapter", [results["tuned"]], sources=len(selected)),
        ],
        command=command,
        versions=runs.versions(),
    )


if __name__ == "__main__":
    raise SystemExit(main(finetune, Config))
