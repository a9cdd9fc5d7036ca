"""One adapter trained on exactly what a selection names: its sources, rows and shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from gradex.data.recorded import only_rows
from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, Example, Family
from gradex.models.encoding import on_best_device
from gradex.selection.choice import Selection
from gradex.selection.shares import Shares
from gradex.training.begin import start_examples
from gradex.training.fit import fit
from gradex.training.mixer import Mixing, ParetoMixer, target_examples
from gradex.training.mixture import Mixture
from gradex.training.prepare import load_base_and_encoder, source_examples, test_scores
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
class Tuned:
    """The trained model, how training went, and the targets' test scores before and after it."""

    recipe: Recipe
    family: Family
    model: nn.Module
    losses: list[float]
    mixture: Mixture | None
    before: Measured
    after: Measured

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
    plan: MixerPlan | None = None,
    save_init: Path | None = None,
) -> Tuned:
    """Measure the base, train on the selection, measure again; checkpoints go to the folder."""
    base, encoder = load_base_and_encoder(recipe.base, sources, max_length=max_length)
    base = on_best_device(base)
    before = test_scores(base.model, sources, encoder, targets)
    # The classes of the model are those of all rows, whichever are chosen.
    chosen = only_rows(sources, selection.rows, where=selection.store)
    examples, _ = source_examples(encoder, chosen, selection.selected)
    mixture = _mixture(selection.weights, examples, is_open=plan is not None)
    model, losses = fit(
        recipe,
        base,
        examples=[example for found in examples.values() for example in found],
        encoder=encoder,
        folder=folder,
        name="fine-tuning",
        mixture=mixture,
        start_from=start_examples(recipe.start_source, encoder, sources),
        mixer=_mixer(plan, sources, examples, encoder) if plan else None,
        save_init=save_init,
    )
    model = on_best_device(replace(base, model=model)).model
    after = test_scores(model, sources, encoder, targets)
    return Tuned(recipe, base.family, model, losses, mixture, before, after)


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


def _mixer(
    plan: MixerPlan, sources: Sources, examples: dict[str, list[Example]], encoder: Encoder
) -> ParetoMixer:
    target = target_examples(encoder, sources[plan.target], labelled=plan.labelled)
    return ParetoMixer(
        Mixing(examples, target, every=plan.every, rows=plan.rows, labelled=plan.labelled)
    )
