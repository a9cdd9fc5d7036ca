"""Train one adapter on all sources: the point at which gradients are taken.

Two earlier points are kept on the way, in points/<step>/, for estimates averaged over all three.

    python -m gradex.meta_train
    python -m gradex.meta_train --model_name_or_path MODEL --tasks my_tasks/ --max_steps 1000

The settings it resolves (data, model, recipe) are those that the later stages repeat.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from gradex import runs
from gradex.adapters.adalora import kept_ranks
from gradex.adapters.folder import export
from gradex.adapters.initial import initial_folder
from gradex.arguments import DEFAULTS, DEMO_DEFAULTS, DataArguments, ModelArguments, TrustArguments
from gradex.config import main, option, with_defaults
from gradex.data.recorded import load_data
from gradex.data.sources import Sources
from gradex.models.load import DEMO
from gradex.records import write_json
from gradex.reporting.cards import adapter_card
from gradex.reporting.ranks import rank_lines
from gradex.train_arguments import PEFT, TrainArguments
from gradex.training.begin import Start, start_examples
from gradex.training.early_stopping import SelectLoss, looking
from gradex.training.fit import fit
from gradex.training.loggers import require_loggers
from gradex.training.prepare import load_base_and_encoder, select_examples, training_examples
from gradex.training.recipe import make_recipe, require_effect, with_steps

log = logging.getLogger(__name__)
EARLY = (0.1, 0.3)  # shares of the steps after which the adapter is kept


@dataclass(frozen=True)
class Config(TrainArguments, TrustArguments, ModelArguments, DataArguments):
    save_init: str | None = option(
        None, "a new folder for the adapter before training and the model that it belongs to, for "
        "another trainer; default: none is written"
    )  # fmt: skip
    output_dir: str | None = option(None, "the run's folder; default: runs/meta_train/UTC-TIME")

    def __post_init__(self):
        DataArguments.__post_init__(self)
        TrainArguments.__post_init__(self)


def meta_train(config: Config) -> Path:
    """Returns the run folder: adapter/, points/, sources.json, curve.json and metrics.csv, and
    config.yaml."""
    require_loggers(config.report_to)
    sources = load_data(asdict(config))
    config = _resolved(config, sources)
    inputs = sources.data_hashes()
    with runs.start("meta_train", config, output_dir=config.output_dir, inputs=inputs) as run:
        _train(config, sources, run)
    return run.path


def _train(config: Config, sources: Sources, run: runs.Run) -> None:
    recipe = make_recipe(asdict(config))
    save_init = initial_folder(config.save_init, recipe.adapter.kind, resumed=run.resumed)
    base, encoder = load_base_and_encoder(recipe.base, sources, max_length=config.max_length)
    names = sources.trainable
    examples, bad = training_examples(encoder, sources, names)
    looks = looking(config.eval_every, config.early_stopping, steps=recipe.max_steps)
    looked_at = select_examples(encoder, sources, sources.targets) if looks else {}
    beside = [SelectLoss(looks, looked_at)] if looks else []
    model, losses = fit(
        recipe,
        base,
        examples=examples,
        encoder=encoder,
        folder=run.part,
        name="meta-training",
        keep_at=early_steps(recipe.max_steps),
        start=Start(rows=start_examples(recipe.start_source, encoder, sources), save_to=save_init),
        beside=beside,
        report_to=config.report_to or (),
    )
    card = adapter_card(
        base=config.model_name_or_path,
        family=base.family,
        target=None,
        selected=names,
        method="all",
        results=[],
        command=run.command,
        versions=runs.versions(),
        recipe=recipe,
        folder=str(run.path / "adapter"),
        kept_step=beside[0].kept_step if beside else None,
    )
    export(model, run.part / "adapter", base_path=recipe.base.source, card=card)
    record = {"sources": sources.record(), "notes": list(sources.notes), "unusable": bad}
    write_json(run.part / "sources.json", record)
    write_json(run.part / "curve.json", {"loss": losses})
    for line in rank_lines(kept_ranks(model)):
        log.info("%s", line)


def early_steps(max_steps: int) -> list[int]:
    """The steps after which the adapter is kept; of very short trainings there are fewer."""
    steps = {max(1, round(share * max_steps)) for share in EARLY}
    return sorted(step for step in steps if step < max_steps)


def _resolved(config: Config, sources: Sources) -> Config:
    """All defaults filled in, epochs turned into steps: what later stages repeat."""
    demo = config.model_name_or_path == DEMO
    defaults = dict(DEMO_DEFAULTS if demo else DEFAULTS)
    if config.peft_config is not None:
        defaults["adapter"] = PEFT
    require_effect(config, defaults)
    if config.num_train_epochs is not None:
        defaults.pop("max_steps", None)
    if config.tokens_per_batch is not None:
        del defaults["per_device_train_batch_size"]
    rows = sum(len(source.rows["train"]) for source in sources.values())
    return with_steps(with_defaults(config, defaults), rows=rows, batches=defaults)


if __name__ == "__main__":
    raise SystemExit(main(meta_train, Config))
