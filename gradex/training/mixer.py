"""Solves for the sources' shares again and again while a model is trained on them.

Every N optimizer steps the mean gradient of a few rows of each source and that of the target's
select rows are taken at the model as it is. The balance program of ParetoDA (Lv et al., NeurIPS
2021) makes of them the shares of the steps that follow. The target's test rows play no part.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.data.sources import Source
from gradex.data.tokens import Encoder, Example, encode_all
from gradex.errors import GradexError
from gradex.selection.pareto import balance_weights
from gradex.selection.shares import Shares
from gradex.training.directions import at_rest, loss_gradient, unlabelled_gradient
from gradex.training.module import FineTuner

PARAMS_AT_ONCE = 1 << 16
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixing:
    """What the shares are solved from: `rows` of each source's examples, and the target's."""

    sources: dict[str, list[Example]]
    target: list[Example]
    every: int
    rows: int
    labelled: bool = True

    @property
    def target_rows(self) -> int:
        """The target's gradient is in every product: it has as many rows as all sources."""
        return min(len(self.target), self.rows * len(self.sources))

    @property
    def rows_a_solve(self) -> int:
        return self.target_rows + sum(min(len(e), self.rows) for e in self.sources.values())


def target_examples(encoder: Encoder, target: Source, *, labelled: bool) -> list[Example]:
    """Of a target's select rows; without labels, of what stands before their completions."""
    examples, _ = encode_all(encoder, target.rows["select"], labelled=labelled)
    if not examples:
        raise GradexError(
            f"--target {target.name}: none of its {len(target.rows['select'])} select rows has "
            f"what the mixer needs within --max_length {encoder.max_length} tokens"
        )
    return examples


def solve(
    model: nn.Module,
    encoder: Encoder,
    mixing: Mixing,
    *,
    batch_size: int,
    seed: Sequence[int],
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Shares:
    """The shares that the balance program gives for gradients of the model as it is.

    Which rows they are taken of is drawn from the seed; `context` is that of the forward passes.
    """
    generator = np.random.default_rng(seed)
    gradient_of = loss_gradient if mixing.labelled else unlabelled_gradient
    with at_rest(model), context():
        pulls = {
            name: loss_gradient(
                model, _some(examples, mixing.rows, generator), encoder, batch_size=batch_size
            )
            for name, examples in mixing.sources.items()
        }
        wanted = _some(mixing.target, mixing.target_rows, generator)
        goal = gradient_of(model, wanted, encoder, batch_size=batch_size)
    return _balanced(pulls, goal)


def _some(examples: Sequence[Example], count: int, generator: np.random.Generator) -> list[Example]:
    return [examples[i] for i in generator.permutation(len(examples))[:count]]


def _balanced(pulls: dict[str, Tensor], goal: Float[Tensor, " param"]) -> Shares:
    """Of directions: a source that is nearly mastered pulls little, and the program, which goes by
    lengths, would pass it over for one that pulls hard at something else. None is left of one that
    does not pull at all."""
    for name, pull in (pulls | {"the target": goal}).items():
        if not torch.isfinite(pull).all():
            raise GradexError(
                f"--mixer: the gradient of {name} is not finite; try a lower --learning_rate"
            )
    moving = [name for name, pull in pulls.items() if pull.any()]
    _require_pull("no source pulls", there=bool(moving))
    _require_pull("the target does not pull", there=bool(goal.any()))
    products = _inner_products(torch.stack([*(pulls[name] for name in moving), goal]))
    lengths = np.sqrt(np.diag(products))
    cosines = products / np.outer(lengths, lengths)
    weights = np.clip(balance_weights(cosines[:-1, :-1], cosines[:-1, -1]), 0, None)
    found = dict(zip(moving, (weights / weights.sum()).tolist(), strict=True))
    return {name: found.get(name, 0.0) for name in pulls}


def _require_pull(missing: str, *, there: bool) -> None:
    if not there:
        raise GradexError(
            f"--mixer: {missing} at all (a gradient of zero), so that there is nothing to solve "
            "for; leave out --mixer"
        )


def _inner_products(rows: Float[Tensor, "row param"]) -> Float[np.ndarray, "row row"]:
    """In double precision, a part after another: in single, those of millions of parameters are not
    even symmetric."""
    parts = (part.double() for part in rows.split(PARAMS_AT_ONCE, dim=1))
    return sum(part @ part.T for part in parts).numpy()


class ParetoMixer(pl.Callback):
    """Sets the shares of the module's mixture before the first step, where they are open, and
    after every so many. The mixture keeps them through checkpoints."""

    def __init__(self, mixing: Mixing):
        self.mixing = mixing

    def on_train_start(self, trainer: pl.Trainer, module: FineTuner) -> None:
        self._tell_cost(trainer, module)
        if not module.mixture.history:
            self._mix(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: FineTuner, outputs: object, batch: object, index: int
    ) -> None:
        step = trainer.global_step
        is_new = module.mixture.history[-1][0] < step < trainer.max_steps
        if is_new and step % self.mixing.every == 0:
            self._mix(trainer, module)

    def _mix(self, trainer: pl.Trainer, module: FineTuner) -> None:
        """The first process solves for all: what differs in a last bit would draw other rows."""
        shares = None
        if trainer.global_rank == 0:
            shares = solve(
                module.model,
                module.encoder,
                self.mixing,
                batch_size=module.recipe.batch_size,
                seed=[module.recipe.seed, trainer.global_step],
                context=trainer.precision_plugin.forward_context,
            )
        shares = trainer.strategy.broadcast(shares)
        module.mixture.set_shares(trainer.global_step, shares)

    def _tell_cost(self, trainer: pl.Trainer, module: FineTuner) -> None:
        recipe, mixing = module.recipe, self.mixing
        trained = mixing.every * recipe.batch_size * recipe.accumulate * trainer.world_size
        if trainer.global_rank == 0:
            log.info(
                "mixer: the gradients of %d rows (%d of the target) every %d steps, in which %d "
                "are trained on: %.0f%% more", mixing.rows_a_solve, mixing.target_rows,
                mixing.every, trained, 100 * mixing.rows_a_solve / trained,
            )  # fmt: skip
