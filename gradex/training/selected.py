"""One adapter trained on exactly what a selection names: its sources, rows and shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from gradex.data.recorded import only_rows
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, Example, Family
from gradex.errors import GradexError
from gradex.models.encoding import on_best_device
from gradex.selection.choice import Selection
from gradex.selection.shares import Shares
from gradex.training.begin import Start, start_examples
from gradex.training.early_stopping import Looking, SelectLoss
from gradex.training.fit import fit
from gradex.training.masking import Masking, Masks
from gradex.training.mixer import Mixing, ParetoMixer, target_examples
from gradex.training.mixture import Mixture
from gradex.training.prepare import (
    load_base_and_encoder,
    select_examples,
    source_examples,
    test_scores,
)
from gradex.training.recipe import Recipe

Measured = dict[str, dict[str, float]]  # target -> loss (and metric) on its test rows


@dataclass(frozen=True)
class MixerPlan:
    """Which target a mixer goes by, how often it solves, and on how many rows of a source."""

    target: str
    every: int
    rows: int
    labelled: bool = True


@dataclass(frozen=True)
class Beside:
    """What goes on beside the steps of a training, and who is told its numbers."""

    plan: MixerPlan | None = None
    looking: Looking | None = None
    masks: Masks = field(default_factory=dict)
    report_to: Sequence[str] = ()


@dataclass(frozen=True)
class Tuned:
    """The trained model, how training went, and the targets' test scores before and after it.
    `kept_step`: whose adapter it is, where that may not be the last one."""

    recipe: Recipe
    family: Family
    model: nn.Module
    losses: list[float]
    mixture: Mixture | None
    before: Measured
    after: Measured
    kept_step: int | None = None

    @property
    def shares(self) -> Shares:
        """What each source had of all steps; nothing where rows were drawn alike."""
        return self.mixture.mean_shares(len(self.losses)) if self.mixture else {}


def tune_selection(
    selection: Selection,
    sources: Sources,
    recipe: Recipe,
    *,
    max_length: int,
    targets: Sequence[str],
    folder: Path,
    beside: Beside,
    save_init: Path | None = None,
) -> Tuned:
    """Measure the base, train on the selection, measure again; checkpoints go to the folder."""
    _require_row_batches(recipe, mixed=bool(selection.weights or beside.plan))
    base, encoder = load_base_and_encoder(recipe.base, sources, max_length=max_length)
    base = on_best_device(base)
    before = test_scores(base.model, sources, encoder, targets)
    # The classes of the model are those of all rows, whichever are chosen.
    chosen = only_rows(sources, selection.rows, where=selection.store)
    examples, _ = source_examples(encoder, chosen, selection.selected)
    mixture = _mixture(selection.weights, examples, is_open=beside.plan is not None)
    looks = _looks(beside, sources, encoder, targets)
    model, losses = fit(
        recipe,
        base,
        examples=[example for found in examples.values() for example in found],
        encoder=encoder,
        folder=folder,
        name="fine-tuning",
        mixture=mixture,
        start=Start(rows=start_examples(recipe.start_source, encoder, sources), save_to=save_init),
        beside=[*_masking(beside), *looks, *_mixer(beside.plan, sources, examples, encoder)],
        report_to=beside.report_to,
    )
    model = on_best_device(replace(base, model=model)).model
    after = test_scores(model, sources, encoder, targets)
    kept = looks[0].kept_step if looks else None
    return Tuned(recipe, base.family, model, losses, mixture, before, after, kept)


def _require_row_batches(recipe: Recipe, *, mixed: bool) -> None:
    if mixed and recipe.tokens_per_batch is not None:
        raise GradexError(
            "--tokens_per_batch: shares of the sources are shares of a batch's rows, whose number "
            "it leaves open; say --per_device_train_batch_size"
        )


def _mixture(
    shares: Shares, examples: dict[str, list[Example]], *, is_open: bool
) -> Mixture | None:
    """None where all rows are drawn alike; without shares where a mixer is to solve for them."""
    if not shares and not is_open:
        return None
    mixture = Mixture({name: len(found) for name, found in examples.items()})
    if shares:
        mixture.set_shares(0, shares)
    return mixture


def _masking(beside: Beside) -> list[Masking]:
    return [Masking(beside.masks)] if beside.masks else []


def _looks(
    beside: Beside, sources: Sources, encoder: Encoder, targets: Sequence[str]
) -> list[SelectLoss]:
    if beside.looking is None:
        return []
    return [SelectLoss(beside.looking, select_examples(encoder, sources, targets))]


def _mixer(
    plan: MixerPlan | None, sources: Sources, examples: dict[str, list[Example]], encoder: Encoder
) -> list[ParetoMixer]:
    if plan is None:
        return []
    target = target_examples(encoder, sources[plan.target], labelled=plan.labelled)
    mixing = Mixing(examples, target, every=plan.every, rows=plan.rows, labelled=plan.labelled)
    return [ParetoMixer(mixing)]
