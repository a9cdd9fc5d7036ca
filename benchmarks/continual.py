"""What is forgotten when sources are learned one after the other: LoRA beside NoRM, demo world.

    python benchmarks/continual.py
    python benchmarks/continual.py --lora_r 32 --num_seeds 1

The five targets' own sources are learned in three orders that are drawn, 50 steps and a new adapter
each, which is merged into the base before the next begins: as it is, or reduced. Either also at the
scale of NoRM's published code, which drops alpha / rank (2 here): so that what the reduction does
is told apart from what the smaller step does. `all at once` trains one adapter on all five sources'
rows for as many steps as an order has. About ten minutes on one core.
"""

import logging
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from estimate_quality import Row, number, say
from torch import nn

from gradex.adapters.norm import Rule, reduce_update
from gradex.adapters.residual import ADAPTER, base_weight, lora_layers
from gradex.arguments import DEMO_DEFAULTS
from gradex.config import with_defaults
from gradex.data.demo import TARGETS, write_world
from gradex.data.sources import Sources, load_sources
from gradex.data.tokens import Encoder
from gradex.meta_train import Config as MetaConfig
from gradex.models.load import Base
from gradex.models.scoring import score
from gradex.training.fit import fit
from gradex.training.prepare import load_base_and_encoder, training_examples
from gradex.training.recipe import Recipe, make_recipe

WORK = Path("runs/continual")
STEPS = 50  # of one source
METRIC = "exact_match"
SCORES = ("loss", METRIC)
Scores = dict[str, float]


@dataclass(frozen=True)
class Way:
    """How an adapter is merged; `scale` None: at its own alpha / rank."""

    rule: Rule
    scale: float | None = None


WHOLE = Rule(range_start=10)
WAYS = {
    "LoRA": Way(WHOLE),
    "NoRM": Way(Rule()),
    "LoRA, scale 1": Way(WHOLE, 1.0),
    "NoRM, scale 1, as published": Way(Rule(), 1.0),
}


@dataclass(frozen=True)
class Chain:
    """The scores of each task when it was learned and in the end, and the share of ranks kept."""

    order: tuple[str, ...]
    learned: dict[str, Scores]
    final: dict[str, Scores]
    kept: float

    def mean(self, key: str) -> float:
        return fmean(scores[key] for scores in self.final.values())

    def lost(self, key: str) -> float:
        """Since each was learned; the last one had no time to be forgotten."""
        return fmean(self.final[t][key] - self.learned[t][key] for t in self.order[:-1])

    def mean_learned(self, key: str) -> float:
        return fmean(scores[key] for scores in self.learned.values())


@dataclass(frozen=True)
class World:
    sources: Sources
    recipe: Recipe
    max_length: int

    def fresh(self) -> tuple[Base, Encoder]:
        return load_base_and_encoder(self.recipe.base, self.sources, max_length=self.max_length)

    def test(self, model: nn.Module, encoder: Encoder, task: str) -> Scores:
        return score(model, self.sources[task].rows["test"], encoder, METRIC)

    def trained(
        self, base: Base, encoder: Encoder, tasks: Sequence[str], *, seed: int
    ) -> nn.Module:
        shutil.rmtree(WORK / "training", ignore_errors=True)
        examples, _ = training_examples(encoder, self.sources, tasks)
        recipe = replace(self.recipe, seed=seed, max_steps=self.recipe.max_steps * len(tasks))
        model, _ = fit(
            recipe, base, examples=examples, encoder=encoder, folder=WORK / "training", name="task"
        )
        return model


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--lora_r", type=int, default=DEMO_DEFAULTS["lora_r"])
    said = parser.parse_args()
    seeds = range(said.num_seeds)
    logging.disable(logging.WARNING)
    world = _world(said.lora_r)
    orders = _drawn_orders(3)
    chains = {
        label: [_chain(world, way, order, seed=seed) for order in orders for seed in seeds]
        for label, way in WAYS.items()
    }
    alone = {"base": [_base(world)], "all at once": [_joint(world, seed) for seed in seeds]}
    say("The five tasks in the end, and since each was learned", _rows(alone, chains))
    say("Exact match in the end, by order", _by_order(orders, chains))


def _drawn_orders(count: int) -> list[tuple[str, ...]]:
    every = list(permutations(TARGETS))
    chosen = np.random.default_rng(0).choice(len(every), count, replace=False)
    return [every[i] for i in chosen]


def _world(rank: int) -> World:
    WORK.mkdir(parents=True, exist_ok=True)
    write_world(WORK)
    scaled = MetaConfig(max_steps=STEPS, lora_r=rank, lora_alpha=2.0 * rank)
    settings = asdict(with_defaults(scaled, DEMO_DEFAULTS))
    sources = load_sources([str(WORK / "tasks" / "demo")])
    return World(sources, make_recipe(settings), settings["max_length"])


def _chain(world: World, way: Way, order: tuple[str, ...], *, seed: int) -> Chain:
    base, encoder = world.fresh()
    learned, kept = {}, []
    for place, task in enumerate(order):
        model = world.trained(base, encoder, [task], seed=seed * len(order) + place)
        merged, share = _merged(model, way)
        base = replace(base, model=merged)
        learned[task] = world.test(merged, encoder, task)
        kept.append(share)
    final = {task: world.test(base.model, encoder, task) for task in order}
    return Chain(order, learned, final, fmean(kept))


@torch.no_grad()
def _merged(model: nn.Module, way: Way) -> tuple[nn.Module, float]:
    """The base with what is kept of the adapter added to its weights, and the share of its ranks
    that is."""
    kept, ranks = 0, 0
    for _, layer in lora_layers(model):
        pair = (getattr(layer, name)[ADAPTER].weight for name in ("lora_A", "lora_B"))
        found = reduce_update(*pair, base_weight(layer), rule=way.rule)
        scale = layer.scaling[ADAPTER] if way.scale is None else way.scale
        base_weight(layer).add_(scale * found.b @ found.a)
        kept, ranks = kept + found.rank, ranks + layer.r[ADAPTER]
    return model.unload(), kept / ranks


def _base(world: World) -> dict[str, Scores]:
    base, encoder = world.fresh()
    return {task: world.test(base.model, encoder, task) for task in TARGETS}


def _joint(world: World, seed: int) -> dict[str, Scores]:
    base, encoder = world.fresh()
    model = world.trained(base, encoder, TARGETS, seed=seed)
    return {task: world.test(model, encoder, task) for task in TARGETS}


def _rows(alone: dict[str, list[dict[str, Scores]]], chains: dict[str, list[Chain]]) -> list[Row]:
    head = ["test loss", "exact match", "loss when learned", "exact match when learned",
            "loss since", "exact match since", "ranks kept"]  # fmt: skip
    rows: list[Row] = [("", head)]
    for label, runs in alone.items():
        means = [[fmean(s[key] for s in run.values()) for run in runs] for key in SCORES]
        rows.append((label, [*map(_spread, means), *[""] * 5]))
    for label, found in chains.items():
        measures = [
            [measure(chain, key) for chain in found]
            for measure in (Chain.mean, Chain.mean_learned, Chain.lost)
            for key in SCORES
        ]
        rows.append((label, [*map(_spread, measures), number(fmean(c.kept for c in found))]))
    return rows


def _by_order(orders: Sequence[tuple[str, ...]], chains: dict[str, list[Chain]]) -> list[Row]:
    rows: list[Row] = [("order", list(chains))]
    for order in orders:
        cells = [
            _spread([chain.mean(METRIC) for chain in found if chain.order == order])
            for found in chains.values()
        ]
        rows.append((", ".join(order), cells))
    return rows


def _spread(values: Sequence[float]) -> str:
    mean = number(fmean(values))
    return f"{mean} ± {number(stdev(values))}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
