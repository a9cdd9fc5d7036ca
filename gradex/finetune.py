"""Fine-tune the base model on a selection: a peft adapter, measured on the target's test rows.

python -m gradex.finetune
python -m gradex.finetune --selection runs/select_sources/.../selection.json --max_steps 500
"""

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.adapters.spec import export
from gradex.arguments import TrainArguments, TrustArguments, combined, keep
from gradex.config import main, option, with_defaults
from gradex.data.recorded import load_data, require_same_data
from gradex.data.sources import Sources
from gradex.data.tokens import Family
from gradex.errors import unknown
from gradex.models.encoding import on_best_device
from gradex.records import write_json
from gradex.reporting.cards import adapter_card
from gradex.reporting.outcomes import outcome
from gradex.selection.choice import Selection, selection_file
from gradex.training.fit import fit
from gradex.training.prepare import (
    load_base_and_encoder,
    test_scores,
    training_examples,
)
from gradex.training.recipe import make_recipe, with_steps

RECIPE_KEYS = [field.name for field in fields(TrainArguments)]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainArguments, TrustArguments):
    selection: str | None = option(None, "a selection.json; default: the newest run's")
    output_dir: str | None = option(None, "the run's folder; default: runs/finetune/UTC-TIME")


def finetune(config: Config) -> Path:
    """Returns the run folder: adapter/, results.json, curve.json, config.yaml."""
    path = selection_file(config.selection)
    selection = Selection.read(path)
    recorded = selection.recorded_settings(where=str(path))
    sources = load_data(recorded | {"allow_pickle": config.allow_pickle})
    require_same_data(sources, selection.data, where=selection.store)
    _require_target(sources, selection, path)
    rows = sum(len(sources[name].rows["train"]) for name in selection.selected)
    config = with_steps(replace(config, selection=str(path)), rows=rows, batches=recorded)
    config = with_defaults(config, keep(recorded, TrainArguments))
    inputs = asdict(selection)
    with runs.start("finetune", config, output_dir=config.output_dir, inputs=inputs) as run:
        settings = combined(recorded, config)
        _finetune(selection, sources, settings, run)
    return run.path


def _require_target(sources: Sources, selection: Selection, path: Path) -> None:
    if selection.target not in sources.targets:
        raise unknown("target", selection.target, sources.targets, str(path))


def _finetune(
    selection: Selection, sources: Sources, settings: dict[str, Any], run: runs.Run
) -> None:
    recipe = make_recipe(settings)
    base, encoder = load_base_and_encoder(recipe.base, sources, max_length=settings["max_length"])
    base = on_best_device(base)
    before = test_scores(base.model, sources, encoder, [selection.target])
    examples, _ = training_examples(encoder, sources, selection.selected)
    model, losses = fit(
        recipe, base, examples=examples, encoder=encoder, folder=run.part, name="fine-tuning"
    )
    model = on_best_device(replace(base, model=model)).model
    after = test_scores(model, sources, encoder, [selection.target])
    results = {
        "target": selection.target,
        "method": selection.method,
        "selected": selection.selected,
        "store": selection.store,
        "seed": settings["seed"],
        "recipe": {key: settings[key] for key in RECIPE_KEYS if key != "seed"},
        "base": before[selection.target],
        "tuned": after[selection.target],
    }
    log.info(
        "%s, fine-tuned on %d of %d sources (%s), seed %d: test %s; the base model: %s",
        selection.target, len(selection.selected), selection.n_sources, selection.method,
        results["seed"], _told(results["tuned"]), _told(results["base"]),
    )  # fmt: skip
    write_json(run.part / "results.json", results)
    write_json(run.part / "curve.json", {"loss": losses})
    card = _card(results, base=recipe.base.path, family=base.family, command=run.command)
    export(model, run.part / "adapter", base_path=recipe.base.source, card=card)


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
        results=[
            outcome("base model", [results["base"]], sources=0),
            outcome("this adapter", [results["tuned"]], sources=len(selected)),
        ],
        command=command,
        versions=runs.versions(),
    )


if __name__ == "__main__":
    raise SystemExit(main(finetune, Config))
