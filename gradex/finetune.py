"""Fine-tune the base model on a selection: a peft adapter, measured on the targets' test rows.

    python -m gradex.finetune
    python -m gradex.finetune --selection runs/weigh/... --max_steps 500
    python -m gradex.finetune --adapter milora --save_init begun
    python -m gradex.finetune --mixer pareto --mix_every 50
    python -m gradex.finetune --ensemble runs/group/...

Trained on are the rows that the selection names, by its shares where it has some. A mixer solves
for the shares again and again while training, from gradients of the model as it is then. An
ensemble is one adapter for every group of sources, combined by weighted outputs.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from gradex import runs
from gradex.adapters.adalora import kept_ranks
from gradex.adapters.folder import export
from gradex.adapters.initial import initial_folder
from gradex.arguments import TrustArguments, combined, inheriting
from gradex.config import main, option, require_left_out, require_positive, with_defaults
from gradex.data.recorded import load_data
from gradex.data.sources import Sources
from gradex.errors import unknown
from gradex.models.load import hash_files
from gradex.records import write_json
from gradex.reporting.cards import adapter_card
from gradex.reporting.ensembles import write_ensemble_csv
from gradex.reporting.outcomes import outcome
from gradex.reporting.ranks import rank_lines
from gradex.reporting.shares import write_shares
from gradex.selection.choice import Selection
from gradex.selection.chosen import read_chosen
from gradex.selection.groups import read_groups
from gradex.train_arguments import LOOKS, TrainArguments, require_one_device
from gradex.training.early_stopping import looking
from gradex.training.ensemble import tune_ensemble
from gradex.training.loggers import require_loggers
from gradex.training.masking import Masks, read_masks
from gradex.training.recipe import make_recipe, require_effect, with_steps
from gradex.training.selected import Beside, MixerPlan, Tuned, tune_selection

RECIPE_KEYS = [field.name for field in fields(TrainArguments)]
MIXER_DEFAULTS = {"mix_every": 50, "mix_rows": 16}
MIXER_FLAGS = (*MIXER_DEFAULTS, "target", "target_unlabelled")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainArguments, TrustArguments):
    selection: str | None = option(
        None, "a selection.json or its run; default: select_sources' newest"
    )
    ensemble: str | None = option(
        None, "a run of group --sources: one adapter a group, combined by weighted outputs; "
        "default: one adapter on a selection"
    )  # fmt: skip
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
    mask: str | None = option(
        None, "a safetensors file of bool tensors by the names of trained parameters, True where "
        "they may change; default: everywhere"
    )  # fmt: skip
    target_unlabelled: bool = option(
        False, "the mixer reads no labels of the target: sure and varied predictions are its aim"
    )
    save_init: str | None = option(
        None, "a new folder for the adapter before training and the model that it belongs to, for "
        "another trainer; default: none is written"
    )  # fmt: skip
    output_dir: str | None = option(None, "the run's folder; default: runs/finetune/UTC-TIME")

    def __post_init__(self):
        TrainArguments.__post_init__(self)
        require_positive(self, "mix_every", "mix_rows")
        if self.mixer == "none":
            why = "found without a mixer, which alone reads it; say --mixer pareto, or leave it out"
            require_left_out(self, MIXER_FLAGS, why)
        if self.ensemble:
            require_one_device(self, "each adapter of an ensemble is trained on one device")
            alone = ("selection", "mixer", "num_train_epochs", "mask", "save_init", "report_to")
            require_left_out(
                self, (*alone, *LOOKS), "found beside --ensemble, which trains all its adapters "
                "for the same --max_steps on the sources of its groups; leave one of them out",
            )  # fmt: skip


def finetune(config: Config) -> Path:
    """Returns the run folder: results.json, config.yaml, and

    - adapter/, curve.json, metrics.csv, and with a mixer shares.csv and shares.png;
    - or of an ensemble adapters/, ensemble.json, ensemble.csv.
    """
    return _ensemble(config) if config.ensemble else _one_adapter(config)


def _one_adapter(config: Config) -> Path:
    require_loggers(config.report_to)
    masks = {} if config.mask is None else read_masks(Path(config.mask))
    chosen = read_chosen(config.selection, allow_pickle=config.allow_pickle)
    selection, sources, recorded = chosen.selection, chosen.sources, chosen.recorded
    config = replace(config, selection=str(chosen.path))
    if config.mixer != "none":
        config = with_defaults(config, MIXER_DEFAULTS | {"target": selection.target})
    rows = sum(len(chosen.trained[name].rows["train"]) for name in selection.selected)
    require_effect(config, recorded)
    config = inheriting(with_steps(config, rows=rows, batches=recorded), recorded)
    targets = _targets(config, selection, sources)
    inputs = asdict(selection) | ({"mask": hash_files([Path(config.mask)])} if masks else {})
    with runs.start("finetune", config, output_dir=config.output_dir, inputs=inputs) as run:
        settings = combined(recorded, config)
        recipe = make_recipe(settings)
        tuned = tune_selection(
            selection, sources, recipe, max_length=settings["max_length"],
            targets=targets, folder=run.part, beside=_beside(config, masks),
            save_init=initial_folder(config.save_init, recipe.adapter.kind, resumed=run.resumed),
        )  # fmt: skip
        _write(tuned, _results(tuned, selection, config, settings), run)
    return run.path


def _targets(config: Config, selection: Selection, sources: Sources) -> list[str]:
    """Those to measure: the selection's, its first before the others, and the mixer's."""
    found = dict.fromkeys([*selection.targets, *([config.target] if config.target else [])])
    for name in found:
        if name not in sources.targets:
            where = "--target" if name == config.target else str(config.selection)
            raise unknown("target", name, sources.targets, where)
    return list(found)


def _beside(config: Config, masks: Masks) -> Beside:
    looks = looking(config.eval_every, config.early_stopping, steps=config.max_steps)
    return Beside(_mixer_plan(config), looks, masks, config.report_to or ())


def _mixer_plan(config: Config) -> MixerPlan | None:
    if config.mixer == "none":
        return None
    return MixerPlan(
        config.target, config.mix_every, config.mix_rows, labelled=not config.target_unlabelled
    )


def _results(
    tuned: Tuned, selection: Selection, config: Config, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of the first target stand on their own, and all of them under `targets`."""
    both = {
        name: {"base": tuned.before[name], "tuned": after} for name, after in tuned.after.items()
    }
    return {
        "target": selection.target,
        "method": selection.method,
        "selected": selection.selected,
        "choice": selection.identity,
        "mixer": config.mixer,
        "weights": selection.weights,
        "shares": tuned.shares,
        "steps": len(tuned.losses),
        "kept_step": tuned.kept_step,
        "ranks": kept_ranks(tuned.model),
        "rows": {name: len(ids) for name, ids in selection.rows.items()},
        "n_sources": selection.n_sources,
        "store": selection.store,
        **_made_by(settings),
        **both[selection.target],
        "targets": both,
    }


def _made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    recipe = {key: settings[key] for key in RECIPE_KEYS if key != "seed"}
    return {"seed": settings["seed"], "recipe": recipe}


def _write(tuned: Tuned, results: dict[str, Any], run: runs.Run) -> None:
    _tell(results)
    write_json(run.part / "results.json", results)
    write_json(run.part / "curve.json", {"loss": tuned.losses})
    if results["mixer"] != "none":
        write_shares(run.part, tuned.mixture.history, steps=len(tuned.losses))
    base = tuned.recipe.base
    card = adapter_card(
        base=base.path,
        family=tuned.family,
        target=results["target"],
        selected=results["selected"],
        method=results["method"],
        shares=results["shares"],
        results=[
            outcome("base model", [results["base"]], sources=0),
            outcome("this adapter", [results["tuned"]], sources=len(results["selected"])),
        ],
        command=run.command,
        versions=runs.versions(),
        recipe=tuned.recipe,
        folder=str(run.path / "adapter"),
        kept_step=tuned.kept_step,
    )
    export(tuned.model, run.part / "adapter", base_path=base.source, card=card)


def _tell(results: Mapping[str, Any]) -> None:
    log.info(
        "fine-tuned on %d of %d sources (%s), seed %d", len(results["selected"]),
        results["n_sources"], results["method"], results["seed"],
    )  # fmt: skip
    for name, measured in results["targets"].items():
        log.info(
            "%s: test %s; the base model: %s", name, _told(measured["tuned"]),
            _told(measured["base"]),
        )  # fmt: skip
    for line in rank_lines(results["ranks"]):
        log.info("%s", line)


def _told(scores: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())


def _ensemble(config: Config) -> Path:
    groups = read_groups(Path(config.ensemble))
    recorded = groups.recorded_settings()
    sources = load_data(recorded | {"allow_pickle": config.allow_pickle})
    groups.require_of(sources)
    require_effect(config, recorded)
    config = inheriting(replace(config, ensemble=str(groups.path)), recorded)
    with runs.start("finetune", config, output_dir=config.output_dir, inputs=asdict(groups)) as run:
        settings = combined(recorded, config)
        results = tune_ensemble(
            groups, sources, make_recipe(settings), max_length=settings["max_length"],
            folder=run.part,
        )  # fmt: skip
        results |= {"store": groups.store, **_made_by(settings)}
        write_json(run.part / "results.json", results)
        write_ensemble_csv(run.part / "ensemble.csv", results)
    return run.path


if __name__ == "__main__":
    raise SystemExit(main(finetune, Config))
