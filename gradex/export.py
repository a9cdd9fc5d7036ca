"""Hand a selection to another trainer: a folder with its rows and the files to train on them.

    python -m gradex.export
    python -m gradex.export --to axolotl --selection runs/select_sources/... --output_dir chosen

The folder holds training rows only; those that targets are measured on never leave.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradex import runs
from gradex.arguments import inheriting
from gradex.config import main, option
from gradex.data.writing import write_records
from gradex.errors import GradexError
from gradex.records import write_text
from gradex.reporting.dataset_card import CardRow, dataset_card
from gradex.reporting.sentences import plural
from gradex.selection.choice import Selection
from gradex.selection.chosen import read_chosen
from gradex.selection.portions import COLUMNS, Portion, mixture, portions_of
from gradex.train_arguments import TrainArguments
from gradex.training.job import Job, RowFile, rows_drawn
from gradex.training.recipe import Recipe, make_recipe
from gradex.training.stepping_elsewhere import why_not
from gradex.training.trainers import TRAINERS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    to: Literal["jsonl", "llamafactory", "axolotl", "trl", "open_instruct", "hf", "all"] = option(
        "all", "who reads the folder: a trainer; hf: datasets.load_dataset, by a card; jsonl: the "
        "rows alone; all: everyone that these rows are fit for"
    )  # fmt: skip
    selection: str | None = option(
        None, "a selection.json or its run; default: select_sources' newest"
    )
    allow_pickle: bool = option(False, "read pickle files, which can run code")
    output_dir: str | None = option(None, "the folder; default: runs/export/UTC-TIME")


@dataclass(frozen=True)
class Readers:
    """The trainers to write files for, and why not for others, by name."""

    trainers: list[str]
    left_out: dict[str, str]


def export(config: Config) -> Path:
    """Returns the folder: data/, selection.json, the trainers' files and README.md."""
    chosen = read_chosen(config.selection, allow_pickle=config.allow_pickle)
    selection = chosen.selection
    portions = portions_of(selection, chosen.trained)
    recipe = _recipe(chosen.recorded)
    readers = _readers(config.to, portions, recipe)
    config = replace(config, selection=str(chosen.path))
    inputs = asdict(selection)
    with runs.start("export", config, output_dir=config.output_dir, inputs=inputs) as run:
        selection.write(run.part / "selection.json")
        _write_folder(
            run, selection, portions, readers, recipe, max_length=chosen.recorded["max_length"]
        )
    return run.path


def _readers(to: str, portions: Sequence[Portion], recipe: Recipe) -> Readers:
    """A trainer that is asked for by name must be able to train on the rows, and in such steps."""
    kinds = {portion.name: portion.kind for portion in portions}
    asked = {name: trainer for name, trainer in TRAINERS.items() if to in (name, "all")}
    unfit = _unfit_batches(recipe)
    reasons = {
        name: unfit
        or trainer.refuses(kinds, recipe.adapter.kind)
        or why_not(name, recipe.optimizer)
        for name, trainer in asked.items()
    }
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if to in left_out:
        raise GradexError(
            f"--to {to}: {left_out[to]}; {to} would not train on these rows as gradex does, so say "
            "--to jsonl or --to hf, which take any"
        )
    for name, reason in left_out.items():
        log.warning("no files for %s: %s", name, reason)
    return Readers([name for name in asked if name not in left_out], left_out)


def _unfit_batches(recipe: Recipe) -> str | None:
    if recipe.tokens_per_batch is None:
        return None
    return f"its batches have a number of rows, not up to {recipe.tokens_per_batch} tokens"


def _write_folder(
    run: runs.Run,
    selection: Selection,
    portions: Sequence[Portion],
    readers: Readers,
    recipe: Recipe,
    *,
    max_length: int,
) -> None:
    files = _write_rows(portions, "data", run.part)
    mixed = _write_rows(_mixed(portions, recipe), "mixture", run.part)
    job = Job(list((mixed or files).values()), recipe, max_length)
    for name in readers.trainers:
        for file, text in TRAINERS[name].files(job).items():
            write_text(run.part / file, text)
    if run.settings["to"] in ("hf", "all"):
        card = _card(run, selection, _card_rows(portions, files, mixed), readers, recipe)
        write_text(run.part / "README.md", card)
    log.info(
        "%d training rows of %s%s, for %s",
        sum(file.n_rows for file in files.values()), plural(len(files), "source"),
        f", {rows_drawn(recipe)} in the mixture by shares" if mixed else "",
        ", ".join(readers.trainers) or "whoever reads rows",
    )  # fmt: skip


def _recipe(recorded: dict[str, Any]) -> Recipe:
    """What `finetune` follows when it is given no flags."""
    train = inheriting(TrainArguments(), recorded)
    no_trust = {"trust_remote_code": False, "allow_pickle": False}
    return make_recipe(recorded | asdict(train) | no_trust)


def _mixed(portions: Sequence[Portion], recipe: Recipe) -> list[Portion]:
    """Nothing where the sources have no shares: then each row once is the mixture."""
    if portions[0].share is None:
        return []
    return mixture(portions, rows_drawn(recipe), seed=recipe.seed)


def _write_rows(portions: Sequence[Portion], folder: str, root: Path) -> dict[str, RowFile]:
    """A file a source; source -> file."""
    files = {}
    for portion in portions:
        path = f"{folder}/{portion.word}.jsonl"
        write_records(root / path, portion.records())
        files[portion.name] = RowFile(portion.word, path, portion.kind, len(portion.rows))
    return files


def _card_rows(
    portions: Sequence[Portion], files: dict[str, RowFile], mixed: dict[str, RowFile]
) -> list[CardRow]:
    return [
        CardRow(
            portion.name,
            word=portion.word,
            path=files[portion.name].path,
            n_rows=len(portion.rows),
            columns=COLUMNS[portion.kind],
            share=portion.share,
            mixed=mixed[portion.name].n_rows if portion.name in mixed else 0,
            mixed_path=mixed[portion.name].path if portion.name in mixed else None,
        )
        for portion in portions
    ]


def _card(
    run: runs.Run, selection: Selection, rows: list[CardRow], readers: Readers, recipe: Recipe
) -> str:
    return dataset_card(
        rows,
        target=selection.target,
        method=selection.method,
        base=recipe.base.path,
        trainers={name: TRAINERS[name].command for name in readers.trainers},
        left_out=readers.left_out,
        command=run.command,
        versions=runs.versions(),
    )


if __name__ == "__main__":
    raise SystemExit(main(export, Config))
